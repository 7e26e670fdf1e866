"""Faults planted in planner, schedule, streams, ledger and phases: the audit finds each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_synth.blending import BlendConfig, audit, corpus_size, kernels, solve
from megatron_synth.blending import epochs as epochs_module
from megatron_synth.blending import ledger as ledger_module
from megatron_synth.blending import schedule as schedule_module
from megatron_synth.blending import selection as selection_module
from megatron_synth.blending import solver as solver_module
from megatron_synth.blending import streams as streams_module
from megatron_synth.blending import windows as windows_module
from megatron_synth.blending.epochs import EpochOrder
from megatron_synth.blending.sizes import measure
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.blending.streams import BlendedStreams
from megatron_synth.blending.windows import CorpusWindows

S, G = 8, 4


class World:
    """Corpora, and the runs that are audited; plans are made when asked for, faults and all."""

    def __init__(self, folder, make_corpus):
        lengths = np.random.default_rng(3).integers(2, 30, 50).tolist()
        self.folder = folder
        self.prefixes = {
            "organic": make_corpus("organic", lengths),
            "synthetic": make_corpus("synthetic", lengths[:15], first=10_000),
            "fresh": make_corpus("fresh", lengths[10:40], first=20_000),
        }
        scores = np.random.default_rng(4).permutation(50) // 2  # each score twice
        np.save(folder / "scores.npy", scores.astype(np.float64))
        np.save(folder / "order.npy", np.random.default_rng(5).permutation(50))

    def size(self, name, **source):
        if source:
            return measure(SourceConfig(data=self.prefixes[name], **source))
        return corpus_size(self.prefixes[name])

    def solve(self, corpora, *, sources=None, after=None, after_step=None, **settings):
        config = BlendConfig.model_validate(
            {"sequence_length": S, "global_batch_size": G, "corpora": corpora, **settings}
        )
        sizes = {n: self.size(n, **(sources or {}).get(n, {})) for n in self.prefixes}
        return solve(config, sizes, after=after, after_step=after_step)

    def audit(self, plan, **settings):
        return audit(plan, self.prefixes, plan.steps, **settings)

    def blend(self, **settings):
        corpora = {"synthetic": {"epochs": 1}, "organic": {}}
        return self.audit(self.solve(corpora, budget=2500, **settings))

    def documents(self):
        return self.blend(attention="document")

    def tokens(self):
        return self.audit(self.solve({"synthetic": {"tokens": 200}, "organic": {}}, budget=2500))

    def shares(self):
        corpora = {"synthetic": {"share": 0.25}, "organic": {}, "fresh": {"share": 0.25}}
        return self.audit(self.solve(corpora, budget=2500))

    def frozen(self):
        return self.audit(self.solve({"organic": {"epochs": 3, "reshuffle": False}}))

    def alone(self):
        return self.audit(self.solve({"organic": {"epochs": 4, "max_epochs": 4}}))

    def selected(self, **select):
        rule = select or {"top": 0.51}
        sources = {"organic": {"select": {"file": self.folder / "scores.npy", **rule}}}
        return self.audit(self.solve({"organic": {"epochs": 2}}, sources=sources))

    def selected_above(self):
        return self.selected(above=12.0)

    def selected_by_tokens(self):
        return self.selected(top=0.5, of="tokens")

    def ordered(self):
        sources = {"organic": {"order": self.folder / "order.npy"}}
        return self.audit(self.solve({"organic": {"epochs": 2}}, sources=sources))

    def phases(self):
        """Three phases; each cuts the organic corpus's epoch somewhere in its middle."""
        first = self.solve({"synthetic": {"share": 0.3}, "organic": {}}, budget={"steps": 40})
        second = self.solve(
            {"fresh": {"share": 0.2}, "organic": {}},
            budget={"steps": 30},
            after=first,
            after_step=33,
        )
        third = self.solve(
            {"synthetic": {"share": 0.4}, "fresh": {"share": 0.2}, "organic": {}},
            budget={"steps": 45},
            after=second,
            after_step=25,
        )
        return self.audit(third, before=[first, second])


@pytest.fixture
def world(tmp_path, make_corpus, monkeypatch):
    monkeypatch.setenv("MEGATRON_SYNTH_INDEX", str(tmp_path / "indices"))
    return World(tmp_path, make_corpus)


RUNS = [
    *("blend", "documents", "tokens", "shares", "frozen", "alone", "phases"),
    *("selected", "selected_above", "selected_by_tokens", "ordered"),
]


@pytest.mark.parametrize("run", RUNS)
def test_a_run_without_a_planted_fault_passes(world, run):
    found = getattr(world, run)()
    assert found.faults == ()
    assert sum(corpus["windows"] for corpus in found.counted.values()) > 20


def output(owner, name, change, *, method=True):
    """Let `change` have its way with what a function returns."""

    def plant(monkeypatch):
        real = getattr(owner, name)

        def wrong(*args, **names):
            return change(real(*args, **names), *args[method:])

        monkeypatch.setattr(owner, name, wrong)

    return plant


def firsts(change):
    """Windows begin at other tokens of the epoch's text."""

    def plant(monkeypatch):
        real = kernels.pieces

        def wrong(table, key, before, firsts, size):
            return real(table, key, before, np.clip(change(firsts), 0, before[-1] - size), size)

        monkeypatch.setattr(kernels, "pieces", wrong)

    return plant


def turns(change):
    """Other windows of the epoch are served in place of some."""

    def plant(monkeypatch):
        real = EpochOrder.pieces
        monkeypatch.setattr(EpochOrder, "pieces", lambda self, t: real(self, change(t, self)))

    return plant


def begins(change):
    def moved(pieces, turns):
        return pieces._replace(begin=np.clip(change(pieces), 0, 700 - pieces.length))

    return output(EpochOrder, "pieces", moved)


def text(change):
    """What is read into windows, int64[windows, S + 1]."""

    def plant(monkeypatch):
        real = CorpusWindows._read

        def wrong(self, pieces, text):
            real(self, pieces, text)
            change(text)

        monkeypatch.setattr(CorpusWindows, "_read", wrong)

    return plant


def sample(**changes):
    """Other entries of a corpus's sample dict."""

    def changed(samples, *_):
        return [
            {**sample, **{name: change(sample[name]) for name, change in changes.items()}}
            for sample in samples
        ]

    return output(CorpusWindows, "_samples", changed)


def planned(change):
    """Another line of the plan, from the planner itself."""

    def changed(corpus, *_):
        return corpus.model_copy(update=change(corpus))

    return output(solver_module._Source, "planned", changed)


def moved_windows(name, by):
    """The solver gives `name` more windows and takes them from the filling corpus."""

    def changed(windows, *_):
        return {**windows, name: windows[name] + by, "organic": windows["organic"] - by}

    return output(solver_module, "_solve_windows", changed, method=False)


def located(change):
    return output(schedule_module.Schedule, "locate", change)


def account(name, by=1):
    """The ledger's account of the organic corpus is off."""

    def changed(found, corpus, *_):
        return {**found, name: found[name] + by} if corpus.name == "organic" else found

    return output(ledger_module, "_account", changed, method=False)


def whole_account(change):
    return output(ledger_module.Ledger, "at", lambda found, step: {**found, **change(found)})


def no_starts(monkeypatch):
    """Every phase begins each corpus anew."""
    real = BlendedStreams.__init__

    def wrong(self, *args, **names):
        real(self, *args, **names)
        self._starts[:] = 0

    monkeypatch.setattr(BlendedStreams, "__init__", wrong)


def late_starts(monkeypatch):
    real = BlendedStreams.__init__

    def wrong(self, *args, **names):
        real(self, *args, **names)
        self._starts += self._starts > 0

    monkeypatch.setattr(BlendedStreams, "__init__", wrong)


def continued(**change):
    """A phase goes on from somewhere else."""

    def changed(past, plan, *_):
        if plan is None:
            return past
        corpora = {
            name: corpus.model_copy(update={"start": max(0, corpus.start + change.get("start", 0))})
            for name, corpus in past.corpora.items()
        }
        first = past.first_step + change.get("first_step", 0)
        return replace(past, corpora=corpora, first_step=first)

    return output(solver_module, "continue_after", changed, method=False)


def ids(change):
    """`dataset_id` names another corpus."""

    def changed(samples, *_):
        return [{**s, "dataset_id": change(s["dataset_id"])} for s in samples]

    return output(BlendedStreams, "__getitems__", changed)


def one_short(monkeypatch):
    """Planner and epochs leave out the last window of each epoch, in agreement."""
    planned(lambda c: {"windows_per_epoch": c.windows_per_epoch - 1})(monkeypatch)
    monkeypatch.setattr(
        EpochOrder,
        "windows",
        property(lambda s: s.all - 1, lambda s, count: setattr(s, "all", count)),
        raising=False,
    )


def same_documents(monkeypatch):
    """Windows are drawn anew every epoch, documents are not."""
    real = epochs_module.derive_key

    def wrong(seed, corpus, what, draw):
        return real(seed, corpus, what, 0 if what == "documents" else draw)

    monkeypatch.setattr(epochs_module, "derive_key", wrong)


def corpus_by_corpus(monkeypatch):
    """Totals are right, shares are not: one corpus after the other."""

    def wrong(self, samples):
        ends = np.cumsum(self.windows)
        corpora = np.searchsorted(ends, samples, side="right")
        return corpora, samples - (ends - np.array(self.windows))[corpora]

    monkeypatch.setattr(schedule_module.Schedule, "locate", wrong)


def other_item(monkeypatch):
    monkeypatch.setattr(
        BlendedStreams, "__getitem__", lambda self, i: self.__getitems__([max(0, i - 1)])[0]
    )


def chosen(change):
    return output(selection_module, "choose", change, method=False)


def selected_by(change):
    """Another rule picks the documents, in planner and streams alike."""

    def plant(monkeypatch):
        real = selection_module._selected
        monkeypatch.setattr(
            selection_module,
            "_selected",
            lambda select, prefix, table: change(real, select, prefix, table),
        )

    return plant


def at_least(real, select, prefix, table):
    return np.load(select.file) >= select.above


def one_more(real, select, prefix, table):
    kept = real(select, prefix, table)
    kept[np.flatnonzero(~kept)[0]] = True
    return kept


def other_of_equals(real, select, prefix, table):
    """Of the two documents with the lowest score that is in, of which one is in: the other."""
    kept, scores = real(select, prefix, table), np.load(select.file)
    lowest = np.flatnonzero(scores == scores[kept].min())
    assert kept[lowest].sum() == 1
    kept[lowest] = ~kept[lowest]
    return kept


def in_documents_order(monkeypatch):
    monkeypatch.setattr(
        selection_module, "read_order", lambda path, documents: np.arange(documents)
    )


def swapped_order(order, *_):
    order = np.array(order)
    order[[10, 11]] = order[[11, 10]]
    return order


def rotated_order(order, *_):
    return np.roll(order, 1)


def ones_but(place):
    def change(mask):
        mask = mask.clone()
        mask[place] = 0
        return mask

    return change


def plus_one_at(place):
    def change(values):
        values = values.clone()
        values[place] += 1
        return values

    return change


def without_second(cu_seqlens):
    """A document's border is forgotten, where there is one."""
    return torch.cat([cu_seqlens[:1], cu_seqlens[2:], cu_seqlens[-1:]])


def repeat_last(text):
    text[:, -1] = text[:, -2]


def swap_two(text):
    text[:, [2, 3]] = text[:, [3, 2]]


LATE = "a label is not the token that follows"
PLANTED = {
    # epochs: where windows begin, which of them are served, in which order
    "windows begin one token late": ("blend", firsts(lambda f: f + 1), ""),
    "windows begin one token early": ("blend", firsts(lambda f: f - 1), ""),
    "all windows but the first begin late": ("blend", firsts(lambda f: f + (f > 0)), ""),
    "windows do not overlap": ("blend", firsts(lambda f: f // S * (S + 1)), "served before"),
    "windows overlap by two": ("blend", firsts(lambda f: f // S * (S - 1)), "served before"),
    "the first window of the text is never served": (
        "blend",
        turns(lambda t, _: np.maximum(t, 1)),
        "served before",
    ),
    "the last turn serves the one before it": (
        "blend",
        turns(lambda t, epoch: np.minimum(t, epoch.windows - 2)),
        "served before",
    ),
    "pieces that go on are read one token late": (
        "blend",
        begins(lambda p: p.begin + (p.offset > 0)),
        LATE,
    ),
    "pieces are read one token early": ("blend", begins(lambda p: p.begin - 1), ""),
    "no reshuffling": (
        "alone",
        lambda m: m.setattr(CorpusWindows, "_draw", lambda self, epoch: 0),
        "reshuffle is on",
    ),
    "documents keep the first epoch's order": ("alone", same_documents, "reshuffle is on"),
    "reshuffling though it is off": (
        "frozen",
        lambda m: m.setattr(CorpusWindows, "_draw", lambda self, epoch: epoch),
        "reshuffle is off",
    ),
    "planner and epochs are one window short": ("alone", one_short, "windows an epoch"),
    # windows: what stands in a sample
    "labels shifted by one too many": (
        "blend",
        sample(labels=lambda labels: labels.roll(-1)),
        LATE,
    ),
    "labels are the inputs": ("blend", sample(labels=lambda labels: labels.roll(1)), LATE),
    "the last label is the last input": ("blend", text(repeat_last), ""),
    "two tokens of a window change places": ("blend", text(swap_two), LATE),
    "a window holds the tokens of another": (
        "blend",
        text(lambda text: text.__setitem__(0, text[-1].copy())),
        "",
    ),
    "loss is not counted on the last token": (
        "blend",
        sample(loss_mask=ones_but(S - 1)),
        "loss_mask",
    ),
    "loss_mask of another dtype": (
        "blend",
        sample(loss_mask=lambda mask: mask.double()),
        "loss_mask is float64",
    ),
    "positions begin at 1": ("blend", sample(position_ids=lambda p: p + 1), "position_ids"),
    "cu_seqlens one too far": (
        "documents",
        sample(cu_seqlens=lambda c: torch.clamp(c + (c > 0).int(), max=S)),
        "cu_seqlens",
    ),
    "a document's border is forgotten": (
        "documents",
        sample(cu_seqlens=without_second),
        "cu_seqlens",
    ),
    "cu_seqlens ends in 0": (
        "documents",
        sample(cu_seqlens=lambda c: torch.cat([c[:-1], c[-1:] * 0])),
        "cu_seqlens",
    ),
    "positions go on over a border": (
        "documents",
        sample(position_ids=lambda p: torch.arange(S)),
        "position_ids",
    ),
    "max_seqlen one short": (
        "documents",
        sample(max_seqlen=lambda longest: longest - 1),
        "max_seqlen",
    ),
    "a border after every piece's first token": (
        "documents",
        output(
            windows_module, "_starts", lambda s, *_: [[b + 1 for b in r] for r in s], method=False
        ),
        "",
    ),
    # streams and schedule: which window comes when
    "a corpus skips a window": ("blend", located(lambda f, _: (f[0], f[1] + (f[1] >= 5))), ""),
    "a corpus repeats a window": ("blend", located(lambda f, _: (f[0], f[1] - (f[1] >= 5))), ""),
    "a sample is of the other corpus": (
        "blend",
        located(lambda f, samples: (np.where(samples == 3, 1 - f[0], f[0]), f[1])),
        "",
    ),
    "one corpus after the other": ("blend", corpus_by_corpus, "so far"),
    "dataset_id of the other corpus": ("blend", ids(lambda i: 1 - i), ""),
    "dataset_id counts from 1": ("blend", ids(lambda i: i + 1), ""),
    "a sample fetched alone is the one before": ("blend", other_item, "fetched alone"),
    # planner
    "an epoch is planned one window short": (
        "blend",
        planned(lambda c: {"windows_per_epoch": c.windows_per_epoch - 1}),
        "windows an epoch",
    ),
    "an epoch is planned one window long": (
        "blend",
        planned(lambda c: {"windows_per_epoch": c.windows_per_epoch + 1}),
        "windows an epoch",
    ),
    "one dropped token too many is planned": (
        "blend",
        planned(lambda c: {"dropped_per_epoch": c.dropped_per_epoch + 1}),
        "dropped an epoch",
    ),
    "the plan begins at window 1": ("blend", planned(lambda c: {"start": 1}), "begins at window 1"),
    "one window more is planned than there are samples": (
        "blend",
        planned(lambda c: {"windows": c.windows + (c.name == "organic")}),
        "windows are planned for",
    ),
    "one epoch is one window short": ("blend", moved_windows("synthetic", -1), "asked for"),
    "one epoch is one window long": ("blend", moved_windows("synthetic", 1), "asked for"),
    "tokens are rounded up": ("tokens", moved_windows("synthetic", 1), "asked for"),
    "a share is one window short": ("shares", moved_windows("fresh", -1), "asked for"),
    "a cap is passed by one window": (
        "alone",
        planned(lambda c: {"max_epochs": 3.99}),
        "max_epochs 3.99 allows",
    ),
    # ledger
    **{
        f"the ledger's {name} are off": ("blend", account(name), "the ledger says")
        for name in ("windows", "tokens", "windows_ever", "epochs", "dropped_tokens")
    },
    "the ledger's epochs are one window off": (
        "blend",
        account("epochs", 1 / 92),
        "the ledger says",
    ),
    "the ledger's dropped tokens count an epoch that goes on": (
        "blend",
        output(
            ledger_module,
            "_account",
            lambda found, corpus, *_: {
                **found,
                "dropped_tokens": -(-found["windows_ever"] // corpus.windows_per_epoch)
                * corpus.dropped_per_epoch,
            },
            method=False,
        ),
        "the ledger says",
    ),
    "a stream's sum lacks a window": (
        "blend",
        whole_account(
            lambda a: {
                "streams": {n: {**s, "windows": s["windows"] - 1} for n, s in a["streams"].items()}
            }
        ),
        "streams",
    ),
    "a stream's sum lacks a token": (
        "blend",
        whole_account(
            lambda a: {
                "streams": {n: {**s, "tokens": s["tokens"] - 1} for n, s in a["streams"].items()}
            }
        ),
        "streams",
    ),
    "the ledger counts a sample too many": (
        "blend",
        whole_account(lambda a: {"samples": a["samples"] + 1}),
        "the ledger says",
    ),
    "the ledger is one step ahead": (
        "blend",
        lambda m: m.setattr(
            ledger_module.Ledger,
            "at",
            lambda self, step, real=ledger_module.Ledger.at: {
                **real(self, min(step + 1, self.plan.steps)),
                "step": step,
            },
        ),
        "the ledger says",
    ),
    # phases
    "a phase begins every corpus anew": ("phases", no_starts, "served before"),
    "a phase skips a window of each corpus": ("phases", late_starts, ""),
    "a phase is planned to begin one window late": (
        "phases",
        continued(start=1),
        "the phase begins at window",
    ),
    "a phase is planned to repeat a window": (
        "phases",
        continued(start=-1),
        "the phase begins at window",
    ),
    "a phase goes on one step late": (
        "phases",
        continued(first_step=1),
        "the phase begins at window",
    ),
    "a phase goes on from another step's counts": (
        "phases",
        output(
            schedule_module.Schedule,
            "before",
            lambda counts, self_step: (
                (counts[0] + 1, counts[1] - 1, *counts[2:])
                if self_step > 0 and len(counts) > 1
                else counts
            ),
        ),
        "",
    ),
    # selections and orders
    "a document of the score itself is above it": (
        "selected_above",
        selected_by(at_least),
        "outside the selection",
    ),
    "one document too many is selected": (
        "selected",
        selected_by(one_more),
        "outside the selection",
    ),
    "of equal scores the later document is selected": (
        "selected",
        selected_by(other_of_equals),
        "outside the selection",
    ),
    "too many tokens are selected": (
        "selected_by_tokens",
        selected_by(one_more),
        "outside the selection",
    ),
    "documents stand in the corpus's order": (
        "ordered",
        in_documents_order,
        "do not follow the given order",
    ),
    "two documents of an order change places": (
        "ordered",
        output(selection_module, "read_order", swapped_order, method=False),
        "do not follow the given order",
    ),
    "an order begins with its last document": (
        "ordered",
        output(selection_module, "read_order", rotated_order, method=False),
        "order",
    ),
    "documents of an order are permuted": (
        "ordered",
        lambda m: m.setattr(
            kernels,
            "Table",
            lambda real=kernels.Table, **fields: real(**{**fields, "permuted": True}),
        ),
        "do not follow the given order",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(world, monkeypatch, name):
    run, plant, words = PLANTED[name]
    plant(monkeypatch)
    faults = getattr(world, run)().faults
    assert faults
    assert words in " | ".join(faults)


def test_enough_faults_are_planted():
    assert len(PLANTED) >= 60
    assert streams_module.BlendedStreams is BlendedStreams


def test_a_phase_alone_cannot_know_what_an_earlier_one_served(world, monkeypatch):
    """Why `before` is there: the seam is checked with it only."""
    first = world.solve({"organic": {}}, budget={"steps": 5})
    second = world.solve({"organic": {}}, budget={"steps": 5}, after=first)
    no_starts(monkeypatch)
    assert world.audit(second).faults == ()
    assert "served before in the same epoch" in world.audit(second, before=[first]).faults[0]
