"""A synthesis step as a Slurm array: which shards are this task's, and which tasks are not done.

NeMo Curator's `slurm_array` backend says which task this process is and writes task numbers as
sbatch takes them. Shards are shared out here: Curator draws a shard's task by a hash, which would
leave more than a third of the tasks without any where there is one shard a task; and it takes the
number of tasks from Slurm, which says another one when a few tasks are submitted again.
"""

from dataclasses import dataclass

from megatron_synth.config import ConfigError
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.places import Places


@dataclass(frozen=True)
class ArrayTask:
    """A task of an array.

    Attributes:
        index: 0 to `tasks` - 1; None outside of the array, where no shard is one's own.
        tasks: Tasks of the whole array.
        first: Number of the first task in Slurm.
    """

    index: int | None
    tasks: int
    first: int = 0

    def shards(self, shards: int) -> list[int]:
        """Those of `shards` shards that are this task's; tasks differ by one shard at most."""
        return [] if self.index is None else list(range(self.index, shards, self.tasks))

    def outstanding(self, places: Places, shards: int) -> str:
        """Numbers of the tasks whose shards are not all done, as sbatch takes them: `3,7-9`."""
        from nemo_curator.backends.slurm_array import format_slurm_array_indices

        of_whom = {n % self.tasks for n in range(shards) if not places.is_done(n)}
        return str(format_slurm_array_indices(self.first + index for index in of_whom))


def find_array_task(config: SynthesisConfig) -> ArrayTask | None:
    """The task that this process is; None where the settings name no array.

    Raises:
        ConfigError: The array as it was submitted is another one than the settings say.
    """
    tasks = config.ray.slurm_array
    if tasks is None:
        return None
    from nemo_curator.backends.slurm_array import SlurmArrayConfig

    try:
        found = SlurmArrayConfig.from_env()
    except ValueError as error:
        raise ConfigError(str(error), where="environment") from error
    if found is None:
        return ArrayTask(None, tasks)
    first = found.minimum_shard_index
    index = found.shard_index - first
    if not 0 <= index < tasks or found.total_shards > tasks:
        raise ConfigError(
            f"this is task {found.shard_index} of {found.total_shards} in Slurm, but the settings "
            f"say {tasks}",
            where="ray.slurm_array",
            fix=f"Submit with --array={first}-{first + tasks - 1}, or with some of these numbers.",
        )
    return ArrayTask(index, tasks, first)
