"""The recipes under examples/blends solve from declared sizes, to the numbers of the papers."""

import re
from pathlib import Path

import numpy as np
import pytest

from megatron_synth.blending import BlendedStreams, Plan, audit
from megatron_synth.blending.plan_file import read_plans

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "examples" / "blends"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
_SOLVED: dict[str, dict[str, Plan]] = {}


def plans(name: str) -> dict[str, Plan]:
    if name not in _SOLVED:
        _SOLVED[name] = read_plans(RECIPES / f"{name}.yaml")
    return _SOLVED[name]


def epochs(plan: Plan, name: str) -> float:
    return plan.corpus(name).epochs


def test_every_recipe_of_the_papers_is_there():
    assert [
        *("demystifying_grid", "demystifying_mixtures", "mates", "megadocs", "qbsr", "repeat"),
        *("sbp_1t", "sbp_200b", "synpro_merge", "synpro_no_merge", "unique"),
    ] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_solves_before_any_data_or_score_is_there(name):
    for title, plan in plans(name).items():
        assert sum(c.windows for c in plan.corpora) == plan.samples, title
        assert all(c.content_hash is None for c in plan.corpora), title
        header = next(line for line in plan.table().splitlines() if line.startswith("corpus "))
        assert {"cap", "epochs", "share", "dropped/epoch"} <= set(header.split()), title
        assert "(declared)" in plan.table(), title


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_asks_where_it_is_from_and_how_it_is_used(name):
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    head = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    assert 2 <= len(head) <= 5
    assert "ection" in "\n".join(head) and "data: PREFIX" in "\n".join(head)
    assert max(map(len, text.splitlines())) <= 125


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("sbp_200b", {"s0": 0, "s25b": 25, "s50b": 50, "s75b": 75, "s100b": 100}),
        ("sbp_1t", {"s0": 0, "s125b": 125, "s250b": 250}),
    ],
)
def test_the_ablation_of_sbp_reads_every_synthetic_corpus_just_once(name, variants):
    solved = plans(name)
    assert list(solved) == list(variants)
    for variant, billions in variants.items():
        plan = solved[variant]
        if billions == 0:
            assert [c.name for c in plan.corpora] == ["organic"]
            assert round(epochs(plan, "organic"), 2) == 20.0
            continue
        synthetic = plan.corpus("synthetic")
        assert synthetic.windows == synthetic.windows_per_epoch
        assert synthetic.max_epochs == 1
        assert 0 <= billions * 10**9 - synthetic.windows * 4096 <= 4096
        assert plan.corpora[0].tokens == billions * 10**9


@pytest.mark.parametrize(
    ("name", "variant", "organic_epochs", "synthetic_share", "steps"),
    [("sbp_200b", "s75b", 12.5, 0.375, 23_841), ("sbp_1t", "s125b", 17.5, 0.125, 119_209)],
)
def test_sbp_has_the_shares_and_epochs_of_the_paper(
    name, variant, organic_epochs, synthetic_share, steps
):
    plan = plans(name)[variant]
    assert plan.steps == steps  # 2,048 x 4,096 tokens a step
    assert epochs(plan, "organic") == pytest.approx(organic_epochs, abs=0.005)
    assert plan.share("synthetic") == pytest.approx(synthetic_share, abs=5e-5)


def test_the_oracle_reads_no_token_twice_at_200b_and_2_07_times_at_1t():
    solved = plans("unique")
    assert 0.999 < epochs(solved["sbp_200b"], "unique") <= 1
    assert solved["sbp_1t"].corpus("unique").tokens == 482 * 10**9
    assert 2.07 <= epochs(solved["sbp_1t"], "unique") < 2.08


def test_repeat_has_the_epochs_of_the_papers():
    solved = plans("repeat")
    found = {name: round(epochs(plan, "organic"), 1) for name, plan in solved.items()}
    assert found == {"sbp_200b": 20, "sbp_1t": 20, "synpro_400m": 14.3, "megadocs_300m": 16}
    assert solved["synpro_400m"].corpus("organic").tokens == 8 * 10**9 // 10  # 10 % of D_opt
    assert solved["megadocs_300m"].attention == "document"
    assert not solved["megadocs_300m"].corpus("organic").reshuffle


@pytest.mark.parametrize(
    "names",
    [
        ("demystifying_grid",),
        ("demystifying_mixtures",),
        ("sbp_200b",),
        ("sbp_1t",),
    ],
)
def test_all_variants_of_a_grid_train_on_equally_many_tokens(names):
    assert len({plan.tokens for name in names for plan in plans(name).values()}) == 1


@pytest.mark.parametrize("scale", ["200b", "1t"])
def test_repeat_unique_and_sbp_train_on_equally_many_tokens(scale):
    arms = [plans("repeat")[f"sbp_{scale}"], plans("unique")[f"sbp_{scale}"]]
    arms += plans(f"sbp_{scale}").values()
    assert len({plan.tokens for plan in arms}) == 1
    assert len({plan.global_batch_size for plan in arms}) == 1
    assert plans("repeat")[f"sbp_{scale}"].hash == plans(f"sbp_{scale}")["s0"].hash


def test_the_demystifying_grid_has_its_shares_to_within_a_window():
    solved = plans("demystifying_grid")
    percents = [0, 0.5, 1, 2, 5, 10, 15, 20, 50, 100]
    assert list(solved) == [f"p{percent:g}" for percent in percents]
    for percent, plan in zip(percents, solved.values(), strict=True):
        assert plan.global_batch_size * plan.sequence_length == 2**20  # 1M tokens a step
        wanted = percent / 100 * plan.samples
        assert wanted - 1 < plan.corpus("synthetic").windows <= wanted
        assert max(c.epochs for c in plan.corpora) <= 1


@pytest.mark.parametrize("budget", ["1B", "50B"])
def test_the_demystifying_grid_reaches_over_the_papers_budgets(budget):
    solved = read_plans(RECIPES / "demystifying_grid.yaml", [f"budget={budget}"])
    assert len({plan.tokens for plan in solved.values()}) == 1 and len(solved) == 10


def test_the_demystifying_mixtures_are_the_ten_of_the_published_coefficients():
    solved = plans("demystifying_mixtures")
    assert len(solved) == 10
    for kind in ("hq", "qa", "txbk"):
        for percent in (33, 67, 100):
            plan = solved[f"{kind}{percent}"]
            assert -1 < plan.corpus(kind).windows - percent / 100 * plan.samples <= 0
            assert {c.name for c in plan.corpora} <= {"cc", kind}
    assert [c.name for c in solved["cc"].corpora] == ["cc"]


@pytest.mark.parametrize(
    ("variant", "real_epochs", "fraction"),
    [
        ("rephrase_32", 16, 0.75),
        ("stitch_32_matched", 16, 0.75),
        ("stitch_32", 32, 0.9),
        ("thoughts_32_matched", 16, 0.75),
        ("thoughts_32", 32, 0.9),
    ],
)
def test_epochs_of_the_real_stream_fix_the_length_of_megadocs(variant, real_epochs, fraction):
    plan = plans("megadocs")[variant]
    real, synthetic = plan.corpus("real"), plan.corpus("synthetic")
    assert real.windows == real_epochs * real.windows_per_epoch
    length = real_epochs * 200e6 / (1 - fraction)  # C = E |D| / (1 - m)
    assert plan.tokens == pytest.approx(length, rel=1e-4)
    assert plan.share("synthetic") == pytest.approx(fraction, abs=plan.global_batch_size / 1e6)
    assert synthetic.epochs > 2  # cycles
    assert not real.reshuffle and not synthetic.reshuffle
    assert plan.attention == "cross"


def test_megadocs_and_their_control_differ_in_documents_alone():
    solved = plans("megadocs")
    rephrase, stitch = solved["rephrase_32"], solved["stitch_32_matched"]
    assert rephrase.tokens == stitch.tokens == solved["thoughts_32_matched"].tokens
    assert rephrase.corpus("synthetic").tokens == stitch.corpus("synthetic").tokens
    assert rephrase.corpus("synthetic").documents == 33 * stitch.corpus("synthetic").documents
    assert stitch.corpus("synthetic").documents == stitch.corpus("real").documents


def trained_in(plan: Plan) -> dict[str, float]:
    """Epochs of each corpus that the phase trains on."""
    return {c.name: c.epochs for c in plan.corpora if c.windows}


def test_synpro_with_merge_trains_on_all_that_was_made_so_far_at_equal_epochs():
    repeat, *rounds = plans("synpro_merge").values()
    assert (repeat.steps, repeat.corpus("organic").tokens) == (10_920, 8 * 10**8)
    assert repeat.global_batch_size * repeat.sequence_length == 512 * 2048
    for number, plan in enumerate(rounds, 1):
        seen = trained_in(plan)
        assert list(seen) == ["organic", *(f"round-{i}" for i in range(1, number + 1))]
        assert max(seen.values()) == pytest.approx(min(seen.values()), rel=1e-4)
    assert repeat.steps + sum(plan.steps for plan in rounds) == 48_000


def test_synpro_without_merge_trains_on_the_newest_and_is_as_long():
    merged = list(plans("synpro_merge").values())
    for variant, organic in (("with_organic", ["organic"]), ("newest_only", [])):
        solved = plans("synpro_no_merge")
        chain = [solved[variant], *(solved[f"{variant}.newest-{i}"] for i in (1, 2, 3))]
        assert [p.tokens for p in chain] == [p.tokens for p in merged]
        for number, plan in enumerate(chain[1:], 1):
            assert list(trained_in(plan)) == [*organic, f"round-{number}"]


def test_qbsr_goes_down_from_80_to_20_percent():
    repeat, *steps = plans("qbsr").values()
    assert repeat.steps == 10_920
    for plan, percent in zip(steps, (80, 60, 40, 20), strict=True):
        name = f"top{percent}"
        assert list(trained_in(plan)) == [name]
        corpus = plan.corpus(name)
        assert corpus.documents == percent * 640_000 // 100
        assert corpus.tokens == percent * 8_000_000
        assert corpus.source.select.top == percent / 100
        assert 0.99 < corpus.epochs <= 1 == corpus.max_epochs
    total = repeat.steps + sum(plan.steps for plan in steps)
    assert round(total / 1000, 1) == 12.4  # the paper's table: "12.5B"


def test_mates_reads_the_documents_of_positive_influence_once_a_round():
    repeat, *rounds = plans("mates").values()
    for number, plan in enumerate(rounds, 1):
        name = f"positive-{number}"
        assert list(trained_in(plan)) == [name]
        select = plan.corpus(name).source.select
        assert (select.above, select.file.name) == (0, f"influence_{number}.npy")
        assert 0.99 < epochs(plan, name) <= 1 == plan.corpus(name).max_epochs
    total = repeat.steps + sum(plan.steps for plan in rounds)
    assert round(total / 1000, 1) == 12.1  # the paper's table: "12.1B"


@pytest.mark.parametrize("name", ["synpro_merge", "qbsr", "mates"])
def test_each_phase_goes_on_where_the_one_before_stood(name):
    before = None
    for plan in plans(name).values():
        if before is not None:
            assert plan.previous == before.hash
            assert plan.first_step == before.first_step + before.steps
            for corpus in before.corpora:
                assert plan.corpus(corpus.name).start == corpus.start + corpus.windows
        before = plan


@pytest.mark.parametrize("name", ["qbsr", "mates"])
def test_a_recipe_of_selections_is_served_once_data_and_scores_are_there(
    name, make_corpus, tmp_path
):
    prefix = make_corpus("organic", [3 + i % 13 for i in range(200)])
    scores = np.random.default_rng(0).normal(size=200)
    np.save(tmp_path / "scores.npy", scores)
    settings = ["budget.steps=60", "sequence_length=8", "global_batch_size=4"]
    for source in {c.name for plan in plans(name).values() for c in plan.corpora}:
        settings += [f"sources.{source}.data={prefix}", f"sources.{source}.declared=null"]
        if source != "organic":
            settings.append(f"sources.{source}.select.file={tmp_path / 'scores.npy'}")
    solved = read_plans(RECIPES / f"{name}.yaml", settings)
    assert list(solved) == list(plans(name))
    chain: list[Plan] = []
    for plan in solved.values():
        assert len(BlendedStreams(plan)) == plan.samples > 0
        assert audit(plan, {}, plan.steps, before=chain).faults == ()
        chain.append(plan)
    kept = [plan.corpora[-1].documents for plan in chain[1:]]
    positive = int((scores > 0).sum())
    assert kept == ([160, 120, 80, 40] if name == "qbsr" else [positive] * 3)


def test_the_page_about_blending_shows_what_its_example_gives(tmp_path):
    page = (REPOSITORY / "docs" / "blending.md").read_text(encoding="utf-8")
    yaml_block, table = re.search(r"```yaml\n(.*?)```.*?```\n(.*?)```", page, re.DOTALL).groups()
    (tmp_path / "blend.yaml").write_text(yaml_block, encoding="utf-8")
    shown = read_plans(tmp_path / "blend.yaml", variant="base")
    assert list(shown) == ["web", "best"]
    assert shown["web"].table() == table.strip("\n")
    assert list(read_plans(tmp_path / "blend.yaml")) == ["third", "third.best", "half", "half.best"]


def test_the_page_about_blending_lists_every_recipe_and_variant():
    page = (REPOSITORY / "docs" / "blending.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[(\w+)\]\(\.\./examples/blends/\w+\.yaml\) (\|.*)$", page, re.M))
    assert sorted(rows) == NAMES
    for name in ("repeat", "unique", "sbp_200b", "sbp_1t"):
        assert all(f"`{variant}`" in rows[name] for variant in plans(name)), name
