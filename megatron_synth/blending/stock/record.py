"""Which plan served which steps of a Megatron-LM run: a file beside its checkpoints.

Megatron's checkpoints have no place for a plan's hash. `blend_plans.json` in `--save` names the
plan of every phase; a run that loads a checkpoint is held to it.
"""

import json
from pathlib import Path
from typing import Any

from megatron_synth.blending.chain import Chain
from megatron_synth.config import ConfigError, DataError
from megatron_synth.runs import get_logger, write_json

NAME = "blend_plans.json"

_log = get_logger(__name__)


def check_record(chain: Chain, args: Any, order: str) -> None:
    """Refuse to go on with a plan that did not serve the steps before.

    Args:
        chain: The plans.
        order: Names what else decides the samples: stock's options and version; see `order_of`.
        args: Megatron's namespace: `load`, `iteration`. At iteration 0, which `--finetune` sets
            too, everything is allowed.

    Raises:
        ConfigError: The checkpoint was trained by another plan, which the first one here does
            not continue.
        DataError: The file is damaged.
    """
    step, load = int(getattr(args, "iteration", 0) or 0), getattr(args, "load", None)
    if step == 0 or load is None:
        return
    path = Path(load) / NAME
    before = [phase for phase in _read(path) if phase["first_step"] < step]
    if not before:
        _log.warning("%s says nothing of step %d: its plan is not known", path, step)
        return
    if before[-1]["order"] != order:
        raise ConfigError(
            f"step {step:,} was trained with other options or another version of Megatron's "
            f"datasets ({before[-1]['order'] or 'strict order'}, now {order or 'strict order'})",
            where=path,
            fix="Resume with the StockOptions and the Megatron-Core of the run before.",
        )
    was, now = before[-1]["plan"], chain.hash_at(step)
    if was != now:
        raise ConfigError(
            f"step {step:,} was trained by plan {was[:12]}, but these plans say {now[:12]}",
            where=path,
            fix="Resume with the same plan; for another one, solve it as a phase after that plan "
            "and give both.",
        )


def write_record(chain: Chain, args: Any, order: str) -> None:
    """Write down, in `--save`, which plans serve the run from now on."""
    save = getattr(args, "save", None)
    if save is None:
        return
    step, load = int(getattr(args, "iteration", 0) or 0), getattr(args, "load", None)
    first = chain.plans[0].first_step
    earlier = [] if step == 0 or load is None else _read(Path(load) / NAME)
    phases = [phase for phase in earlier if phase["first_step"] < first]
    phases += [{"first_step": p.first_step, "plan": p.hash, "order": order} for p in chain.plans]
    Path(save).mkdir(parents=True, exist_ok=True)
    write_json(Path(save) / NAME, {"phases": phases})


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        phases = json.loads(path.read_text(encoding="utf-8"))["phases"]
        return [
            {
                "first_step": int(phase["first_step"]),
                "plan": str(phase["plan"]),
                "order": str(phase["order"]),
            }
            for phase in phases
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a record of plans: {error}", where=path) from error
