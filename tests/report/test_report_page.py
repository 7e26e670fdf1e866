import csv
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from report_example import HOSTILE, make_example

from megatron_synth.report import (
    Arm,
    Corpus,
    Curve,
    Drop,
    Histogram,
    Pairs,
    Range,
    ReportData,
    Synthesis,
    TextPair,
    write_report,
    write_tables,
)
from megatron_synth.report.axes import spread, tick_label, ticks
from megatron_synth.report.page import render
from megatron_synth.report.verdict import answer
from megatron_synth.report.words import duration, percent, plain, power, signed, visible

VOID = {"meta", "link", "br", "img", "hr", "input", "line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order; keeps tags, attributes and text."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.links, self.words, self.open = [], [], [], [], []
        self.attributes = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_example_page_is_well_formed_and_loads_nothing(tmp_path):
    write_report(make_example(), tmp_path / "deep" / "report.html")
    page = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") or link == "data:," for link in parsed.links)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "script" not in parsed.tags
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_page_shows_the_measured_numbers():
    text = Page(render(make_example())).text
    for shown in ("4.1704", "± 0.0371", "−0.0383", "−0.0512 to −0.0251", "21 %", "1,000,448"):
        assert shown in text.replace("\u202f", " "), shown
    assert "62.3" in text  # e to 4.1321
    assert "1 of 3 rows differ from the plan" in text
    assert "9b1f6c2e77d04a5ab0e1c3d5f7a90b21" in text


def test_same_data_gives_the_same_bytes():
    assert render(make_example()) == render(make_example())


def test_hostile_text_is_shown_as_text():
    page = render(make_example(title=HOSTILE, config_yaml=HOSTILE, run_folder=HOSTILE))
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "img" not in parsed.tags
    assert not [k for k, _ in parsed.attributes if k.startswith("on")]
    assert HOSTILE in parsed.text
    assert "⟨U+202E⟩" in parsed.text
    assert "⟨U+0000⟩" in parsed.text
    assert "\u202e" not in page


def hostile_everywhere(text):
    """Every free string of the schema set to `text`."""
    pair = TextPair(left_title=text, left=text, right_title=text, right=text, note=text)
    example = make_example()
    return make_example(
        question=text,
        title=text,
        created=text,
        notes=[text],
        environment={text: text},
        config_yaml=text,
        arms=[a.model_copy(update={"label": text}) for a in example.arms],
        curves=[c.model_copy(update={"stream": text}) for c in example.curves],
        ledger=[r.model_copy(update={"corpus": text}) for r in example.ledger],
        corpus=Corpus(rows=2, documents=1, drops=[Drop(reason=text, count=1)]),
        pairs=Pairs(
            pairs=1,
            threshold=0.5,
            documents=2,
            documents_as_d1=1,
            drops=[Drop(reason=text, count=1)],
            samples=[pair],
        ),
        synthesis=Synthesis(generator=text, sampling=text, samples=[pair]),
        costs=[c.model_copy(update={"step": text}) for c in example.costs],
        steps=[s.model_copy(update={"name": text, "folder": text}) for s in example.steps],
    )


@settings(max_examples=20, deadline=None)
@given(st.text(st.sampled_from("<>&\"'/`=-!{}% \x00\u202e\ud800script:#;ax\n"), max_size=60))
def test_no_string_can_break_out_of_any_place(text):
    plain_tags = Page(render(hostile_everywhere("x"))).tags
    page = render(hostile_everywhere(text or "x"))
    page.encode("utf-8")
    assert Page(page).tags == plain_tags


def test_template_syntax_in_text_is_not_run():
    assert "{{ 7 * 7 }}" in Page(render(make_example(title="{{ 7 * 7 }}"))).text


def test_an_unfinished_run_says_what_is_missing():
    data = ReportData(question="Does it work?", finished=False)
    text = Page(render(data)).text
    assert "This run is not finished" in text
    assert text.count("Not there yet") >= 8
    assert "Not answered yet" in text


def test_every_section_may_be_missing_alone():
    for name in ("arms", "curves", "ledger", "costs", "steps"):
        assert "Not there yet" in Page(render(make_example(**{name: []}))).text
    for name in ("corpus", "pairs", "tuning", "synthesis", "held_out", "parameters"):
        Page(render(make_example(**{name: None})))


def arms(**method):
    return [
        Arm(name="repeat", label="Repeat", role="baseline", loss=4.0, tokens=1_000_000),
        Arm(name="sbp", label="SBP", role="method", method="sbp", **method),
    ]


def headline(**method):
    return answer(ReportData(question="q?", arms=arms(**method)))


def span(estimate, low, high):
    return Range(estimate=estimate, low=low, high=high)


def test_answer_says_better_only_if_the_interval_does():
    sentence = headline(loss=3.9, difference=span(-0.1, -0.15, -0.05)).headline
    assert "SBP is better than Repeat" in sentence
    assert "0.1000 nats per token lower" in sentence
    assert "interval 0.0500 to 0.1500" in sentence


def test_answer_says_worse_where_it_is():
    sentence = headline(loss=4.1, difference=span(0.1, 0.05, 0.15)).headline
    assert "SBP is worse than Repeat" in sentence
    assert "higher" in sentence


def test_answer_says_that_arms_cannot_be_told_apart():
    sentence = headline(loss=3.99, difference=span(-0.01, -0.03, 0.01)).headline
    assert "cannot be told apart from Repeat" in sentence
    assert "−0.0300 to +0.0100" in sentence
    assert "better" not in sentence


def test_answer_waits_for_missing_losses():
    assert "SBP has no held-out loss" in headline(state="running").headline
    assert "without a paired interval" in headline(loss=3.9).headline


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_verdict_never_contradicts_the_interval(estimate, below, above):
    value = span(estimate, estimate - below, estimate + above)
    sentence = headline(loss=4.0, difference=value).headline
    assert ("is better" in sentence) == (value.high < 0)
    assert ("is worse" in sentence) == (value.low > 0)


def test_limits_stand_under_the_answer():
    details = " ".join(
        headline(loss=3.9, tokens=1_200_000, difference=span(-0.1, -0.2, -0.05)).details
    )
    assert "Compute is not equal: SBP was trained on 1.2M tokens, Repeat on 1M" in details
    assert "each arm was trained once" in details
    assert "cannot be scaled down" in details


def test_a_recovery_ratio_towards_a_worse_oracle_is_no_success():
    details = answer(
        make_example(
            arms=[
                *arms(loss=4.1, difference=span(0.1, 0.05, 0.2), recovery=span(0.5, 0.4, 0.6)),
                Arm(
                    name="u",
                    label="Unique",
                    role="oracle",
                    loss=4.2,
                    difference=span(0.2, 0.1, 0.3),
                ),
            ]
        )
    ).details
    assert any("Unique is worse than Repeat" in sentence for sentence in details)


def test_a_ratio_that_is_not_identified_gives_its_reason():
    data = make_example(arms=arms(loss=3.9, recovery_note="the gap holds zero"))
    assert "not identified. the gap holds zero." in " ".join(answer(data).details)
    assert "not identified" in Page(render(data)).text


def test_wrong_data_is_refused():
    with pytest.raises(ValidationError, match="same name"):
        ReportData(question="q", arms=[Arm(name="a"), Arm(name="a")])
    with pytest.raises(ValidationError, match="more than one arm"):
        ReportData(
            question="q", arms=[Arm(name="a", role="baseline"), Arm(name="b", role="baseline")]
        )
    with pytest.raises(ValidationError, match="2 token counts for 1 losses"):
        Curve(arm="a", tokens=[1, 2], loss=[1])
    with pytest.raises(ValidationError, match="need 2 counts"):
        Histogram(edges=[0, 0.5, 1], neighbours=[1], pairs=[1, 2])
    with pytest.raises(ValidationError, match="finite"):
        Curve(arm="a", tokens=[1], loss=[float("nan")])


@pytest.mark.parametrize("points", [0, 1, 2, 5000])
def test_curves_of_any_length_can_be_drawn(points):
    tokens = [float(i + 1) for i in range(points)]
    curve = Curve(arm="sbp", tokens=tokens, loss=[2.0] * points)
    page = render(make_example(curves=[curve], tuning=None))
    Page(page)
    assert len(page) < 200_000
    assert ("polyline" in page) == (points > 0)


def test_a_killed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(make_example(), path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "megatron_synth.report.page.render", lambda _: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        write_report(make_example(), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_tables_hold_the_same_figures(tmp_path):
    paths = write_tables(make_example(), tmp_path)
    assert sorted(p.name for p in paths) == [
        "arms.csv",
        "costs.csv",
        "curves.csv",
        "drops.csv",
        "ledger.csv",
    ]
    with (tmp_path / "arms.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert float(rows[1]["difference_low"]) == -0.0512
    assert rows[0]["difference"] == ""
    with (tmp_path / "drops.csv").open(newline="") as handle:
        assert next(csv.DictReader(handle)) == {
            "step": "corpus",
            "reason": "too short",
            "count": "7100",
        }
    with (tmp_path / "ledger.csv").open(newline="") as handle:
        assert next(csv.DictReader(handle))["used_tokens"] == "1000448"
    write_tables(ReportData(question="q"), tmp_path)


def test_words_for_numbers():
    assert signed(-0.03831) == "−0.0383"
    assert signed(0.00001) == "0.0000"
    assert plain(float("nan")) == "–"
    assert percent(-0.002) == "0\u202f%"
    assert percent(-0.123) == "−12\u202f%"
    assert duration(59.6) == "1\u202fmin 00\u202fs"
    assert duration(3599.7) == "1\u202fh 00\u202fmin"
    assert power(8.0e12) == "8.0\u202f×\u202f10¹²"
    assert power(9.99e12) == "1.0\u202f×\u202f10¹³"
    assert visible("a\r\nb\tc") == "a\nb\tc"
    assert visible("x" * 20, 5) == "xxxxx … (15 characters more)"


@given(st.floats(-100, 100), st.floats(1e-3, 100), st.integers(2, 8))
def test_ticks_lie_inside_and_are_few(low, width, wanted):
    marks = ticks(low, low + width, wanted)
    assert all(low - 1e-6 * width <= m <= low + width + 1e-6 * width for m in marks)
    assert len(marks) <= wanted + 1
    if len(marks) > 1:
        step = marks[1] - marks[0]
        assert len({tick_label(m, step) for m in marks}) == len(marks)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_labels_do_not_overlap(positions):
    moved = sorted(spread(positions, 16, 0, 100))
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(moved))


BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]


def browse(tmp_path, page, *options):
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


@pytest.mark.slow
@pytest.mark.skipif(not Path(BROWSER).is_file(), reason="no chromium (set CHROMIUM to its path)")
def test_a_browser_shows_the_page_without_errors(tmp_path):
    path = tmp_path / "report.html"
    write_report(make_example(), path)
    shot = tmp_path / "shot.png"
    _, console = browse(tmp_path, path, "--window-size=1280,2400", f"--screenshot={shot}")
    assert not console
    assert shot.stat().st_size > 50_000
    dom, console = browse(tmp_path, path, "--dump-dom")
    assert not console
    assert "<title>quickstart</title>" in dom  # the script in a document did not run
    assert "&lt;script&gt;document.title" in dom
    (tmp_path / "broken.html").write_text("<script>console.error('seen')</script>")
    assert browse(tmp_path, tmp_path / "broken.html", "--dump-dom")[1]  # errors would be seen


def test_the_organic_text_is_shown_with_what_was_left_out_and_what_was_not_to_be_had():
    text = Page(render(make_example())).text
    for words in ("Rows read", "55,100", "48,000", "too short", "7,100"):
        assert words in text
    assert "1,000 held-out documents were asked for; 714 could be had." in text
    enough = make_example().corpus.model_copy(update={"validation": 1000})
    assert "were asked for" not in Page(render(make_example(corpus=enough))).text


def test_the_caption_of_tuning_names_held_out_pairs_only_where_there_is_their_curve():
    data = make_example()
    training = [c for c in data.tuning.curves if c.kind == "train"]
    held_out = [training[0].model_copy(update={"kind": "validation"})]
    for curves, said in ((training, False), ([*training, *held_out], True)):
        tuning = data.tuning.model_copy(update={"curves": curves})
        assert ("held-out pairs" in Page(render(make_example(tuning=tuning))).text) is said
