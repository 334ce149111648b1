"""`python -m spanbox`, also for `torchrun --nproc-per-node 2 -m spanbox train ...`."""

from spanbox.cli.main import main

main()
