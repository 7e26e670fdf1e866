"""`python -m megatron_synth.launch.prepare RUN`: what a run needs before its first job starts.

Records which input the run reads, where the input is: on the cluster. Costs one look at the
names, sizes and times of its files.
"""

import sys
from pathlib import Path

from megatron_synth.config import MegatronSynthError
from megatron_synth.experiments.run_folder import RunFolder


def main() -> int:
    """Prepare the run folder named on the command line."""
    run = RunFolder(Path(sys.argv[1]))
    try:
        run.write_source(run.config())
    except MegatronSynthError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
