"""The `spanbox` command, also as `python -m spanbox` and `torchrun --nproc-per-node 2 -m spanbox train ...`."""

import sys


def main() -> None:
    """Run the command; Ctrl-C while its modules are imported ends it without a traceback."""
    try:
        from spanbox.cli.main import main as run
    except KeyboardInterrupt:
        print("spanbox: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
