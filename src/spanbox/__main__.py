"""`python -m spanbox`, which is also how `torchrun` starts it: `torchrun --nproc-per-node 2 -m spanbox train ...`."""

from spanbox.cli.main import main

main()
