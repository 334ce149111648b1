"""The `spanbox` command, one thin file per subcommand."""
