"""The paper's tables: what they are, the plans of their runs, launching them, and the tables that come out."""

import csv
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from nest_jax import config as configs
from nest_jax import main as nest_main
from nest_jax import plugins, recipes, results, rundir
from nest_jax.errors import InputError
from nest_jax.tables import catalogue, launch, overview, paper, plan, report, reproducing
from nest_jax.tables.__main__ import main
from nest_jax.tables.catalogue import FAMILIES, TABLES
from tests import tiny

CHECKOUT = Path(__file__).parents[1]

# Rows of the paper's own making x columns, and how many of these runs train a task 0.
SIZES = {1: (12, 4, 11), 2: (12, 4, 8), 3: (4, 1, 1), 4: (2, 1, 1), 5: (4, 1, 1), 6: (1, 1, 1)}
SIZES |= {7: (2, 5, 5), 8: (4, 2, 2), 9: (4, 1, 1), 10: (2, 3, 2), 11: (4, 1, 1), 12: (3, 1, 1)}


def planned(number, dataset="", workdir="runs/tables", **options):
    return plan.make(catalogue.table(number, dataset), str(workdir), **options)


def by_row(number, dataset="shapes", workdir="runs/tables", **options):
    made = planned(number, dataset, workdir, **options)
    return {run.row: run for run in plan.with_starts(made, made.runs)}


# ---------------------------------------------------------------------------------------------------------------------- the paper


def test_printed_numbers_stand_where_they_belong():
    main_table = {(row.label, row.backbone): row.cells for row in paper.rows(1)}
    assert main_table["MiB+NeST", "resnet101"]["15-1"] == {"old": 61.7, "new": 20.4, "all": 51.8}
    assert main_table["PLOP+NeST", "swin_b"]["10-1"]["all"] == 47.2
    assert main_table["SPPA", "resnet101"]["10-1"] == {}
    assert {row.label: row.cells["15-1"]["all"] for row in paper.rows(3)}["Two-Stage"] == 38.7
    assert paper.rows(6)[1].cells["15-1"]["memory_per_gpu_gb"] == 6.47
    assert paper.rows(7)[1].cells["D"] == {"all": 60.0}
    assert paper.rows(8)[0].cells["10-1"] == {"all": 2.0}
    assert paper.rows(9)[2].cells["80-91"] == {"old": 46.1, "new": 17.0, "all": 30.8}


def test_every_own_row_has_printed_numbers_in_every_column():
    for table in TABLES.values():
        wanted = {"memory_per_gpu_gb", "extra_time"} if table.number == 6 else set(table.metrics)
        for row in table.rows:
            for column in table.columns if row.variant else ():
                printed = row.paper[column.label]
                assert {metric for metric in table.metrics if metric in printed} == wanted, (table.number, row.label)


def test_orders_of_the_paper_are_those_of_the_protocol():
    printed = json.loads((CHECKOUT / "nest_jax/tables/paper_tables.json").read_text())["class_orders"]
    for run in planned(7).runs:
        seen = list(configs.protocol(run.config).seen(5))
        assert seen[16:] == printed[run.column][16:] and sorted(seen) == sorted(printed[run.column])


# ---------------------------------------------------------------------------------------------------------------------- the plans


@pytest.mark.parametrize("number", TABLES)
def test_plan_has_a_run_for_every_cell_of_the_papers_own_making(number):
    rows, columns, bases = SIZES[number]
    made = planned(number)
    assert len(made.runs) == rows * columns and made.missing == ()
    started = plan.with_starts(made, made.runs)
    assert sum(not run.start for run in started) == bases
    assert len({run.workdir for run in started}) == len(started)
    seen = set()
    for run in started:  # none precedes the one whose task 0 it takes
        assert not run.start or run.start in seen
        seen.add(run.workdir)


@pytest.mark.parametrize("number", TABLES)
def test_commands_give_the_planned_configs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = planned(number, workdir="with space/runs")
    text = launch.dry(made, plan.with_starts(made, made.runs))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    commands = [words for words in lines if words]
    assert len(commands) == len(made.runs) == text.count(" of ")
    for words, run in zip(commands, made.runs, strict=True):
        assert words[:3] == ["python", "-m", "nest_jax.main"]
        flags, overrides = nest_main.parse(words[3:])
        config = configs.load(flags.config)
        configs.override(config, [pair for pair in overrides if pair[0] != "init_from"])
        assert config == run.config and flags.workdir == run.workdir
        picked = dict(pair.split("=") for pair in run.spec.partition(":")[2].split(","))
        assert (config.method.name, config.classifier_init.name) == (picked["method"], picked["classifier_init"])


def test_rows_are_what_they_are_called():
    made = {run.row: run.config for number in (3, 4, 5, 11, 12) for run in planned(number).runs}
    assert made["Random"].classifier_init.name == "random" and made["Two-Stage"].classifier_init.name == "two_stage"
    assert (made["random"].classifier_init.matrix_init, made["similarity"].classifier_init.matrix_init) == (
        "random",
        "similarity",
    )
    assert made["projection only"].classifier_init.matrices == "projection"
    assert made["importance only"].classifier_init.matrices == "importance"
    assert not made["PLOP+NeST without"].train.freeze_old_classifiers  # of table 12, which comes last
    assert made["PLOP with"].train.freeze_old_classifiers and made["PLOP+NeST with"].train.freeze_old_classifiers
    assert not made["MiB+NeST without"].classifier_init.weight_alignment
    disjoint = planned(8).runs
    assert {(run.config.tasks.setting, run.config.tasks.name) for run in disjoint} == {
        ("disjoint", "15-1"),
        ("disjoint", "10-1"),
    }
    transformers = planned(10).runs[0].config
    assert (transformers.backbone.name, transformers.decoder.name) == ("vit_b", "setr")


def test_task_0_is_shared_by_what_it_depends_on():
    runs = {(run.row, run.column): plan.task_0(run.config) for run in planned(1).runs}
    shared = runs["MiB*", "15-1"]
    assert shared == runs["PLOP+NeST", "15-1"] == runs["MiB+NeST", "15-5"]
    assert (
        runs["Joint", "10-1"] == runs["Joint", "15-1"] == runs["Joint", "19-1"]
    )  # evaluated differently, trained alike
    other = [("MiB*", "10-1"), ("MiB*", "19-1"), ("RCIL*", "15-1"), ("MiB* (Swin-B)", "15-1"), ("Joint", "15-1")]
    assert all(runs[one] != shared for one in other)
    assert plan.task_0(planned(8).runs[0].config) != shared  # disjoint: images of later classes are left out
    assert plan.task_0(planned(7).runs[2].config) != shared  # order B: other base classes

    def changed(key, value):
        return plan.task_0(planned(3, extra=((key, value),)).runs[1].config)

    assert changed("train.epochs", "30,9") == changed("train.learning_rate", "0.02,0.3") == shared
    assert changed("train.epochs", "29,30") != shared != changed("train.weight_decay", "0")
    assert changed("classifier_init.epochs", "9") == shared
    assert plan.task_0(planned(3, seeds=2).runs[5].config) != shared


def test_tables_share_their_runs():
    places = {}
    for number in (1, 3, 4, 5, 6, 7, 11):
        for run in planned(number).runs:
            places.setdefault(run.workdir, []).append((number, run.config))
    both = places["runs/tables/voc/15-1/mib_nest/seed-42"]
    assert [number for number, _ in both] == [1, 3, 4, 5, 6, 7, 11]
    for found in places.values():
        assert all(config == found[0][1] for _, config in found)


def test_planned_anew_on_another_data_set():
    runs = by_row(3, "voc_animals", seeds=3)
    assert {run.spec.partition(":")[0] for run in runs.values()} == {"configs/voc_animals_3_1.py"}
    assert runs["NeST"].workdir == "runs/tables/voc_animals/3-1/mib_nest/seed-44"  # the last of three
    assert planned(3, "voc_animals", seeds=3).seeds == (42, 43, 44)
    main_rows = planned(1, "voc_animals")
    assert [run.row for run in main_rows.runs] == ["Joint", "MiB*", "MiB+NeST", "PLOP*", "PLOP+NeST"]
    assert {one.row for one in main_rows.missing} == {"RCIL*", "RCIL+NeST"}  # it has networks of its own
    assert all("method rcil needs" in one.reason for one in main_rows.missing)
    assert main_rows.table.rows[2].paper == {
        "3-1": {"old": 61.7, "new": 20.4, "all": 51.8}
    }  # the paper's 15-1 beside it
    assert catalogue.datasets(7) == ["voc"] == catalogue.datasets(10)
    assert catalogue.datasets(8) == ["voc", "voc_animals", "shapes"] and catalogue.datasets(2) == ["ade"]


def test_a_config_that_is_not_there_leaves_its_cells_blank(monkeypatch, tmp_path):
    family = FAMILIES["voc"]
    monkeypatch.setitem(FAMILIES, "voc", family._replace(configs={**family.configs, "15-5": "configs/voc_15_6.py"}))
    made = planned(10, workdir=tmp_path)
    assert [(one.row, one.column) for one in made.missing] == [
        ("MiB (vit_b, SETR)", "15-5"),
        ("MiB+NeST (vit_b, SETR)", "15-5"),
    ]
    assert len(made.runs) == 4 and "no such file" in made.missing[0].reason
    assert "not possible: --config=configs/voc_15_6.py: no such file" in report.markdown(made, report.cells(made))


def test_overrides_reach_the_runs_that_have_their_keys():
    extra = (("train.epochs", "2,1"), ("classifier_init.epochs", "1"))
    runs = by_row(3, extra=extra)
    assert all(run.config.train.epochs == (2, 1) for run in runs.values())
    assert runs["NeST"].config.classifier_init.epochs == runs["Two-Stage"].config.classifier_init.epochs == 1
    assert "--config.classifier_init.epochs=1" not in plan.command(runs["Background"])
    assert "--config.classifier_init.epochs=1" in plan.command(runs["NeST"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--table=13"], "choices: 1, 2"),
        (["--table=3", "--dataset=vocs"], "did you mean 'voc'"),
        (["--table=7", "--dataset=voc_animals"], "table 7: --dataset: unknown value 'voc_animals'; choices: voc"),
        (["--table=3", "--rows", "Nest", "Rondom"], "--rows: unknown value 'Rondom'; did you mean 'Random'?"),
        (["--table=3", "--seeds=0"], "--seeds=0"),
        (["--table=3", "--config.train.epohcs=1,1"], "did you mean 'train.epochs'"),
        (["--table=3", "--config.classifier_init.epohcs=1"], "no row of table 3 has this key"),
        (["--table=3", "--config.train.batch_size=0"], "train.batch_size=0"),
        (["--table=3", "--config.seed=1"], "table 3: seed"),
        (["--table=12", "--config.train.freeze_old_classifiers=true"], "table 12: train.freeze_old_classifiers"),
        (["--table=3", "--lsit"], "--lsit"),
        ([], "--list"),
        (["--markdown", "nowhere.md"], "nowhere.md: no such file"),
    ],
)
def test_bad_input_is_one_message_and_code_2(arguments, text, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and text in captured.err and captured.out == ""


# --------------------------------------------------------------------------------------------------------------- runs, made by hand


def finish(run, miou=(0.5, 0.25, 0.4), seconds=None, **changes):
    """What a finished run leaves; `miou` of its last task."""
    config = configs.from_json(configs.to_json(run.config))
    with config.unlocked():
        config.init_from, config.dtype = run.start, "float32"
        for key, value in changes.items():
            configs.put(config, key.replace("__", "."), value)
    configs.claim(config, run.workdir)
    task_0, last = (
        {"metrics": dict(zip(("miou_old", "miou_new", "miou_all"), one, strict=True))}
        for one in ((0.9, None, 0.9), miou)
    )
    entries = []
    for task in range(run.tasks):
        entry = {
            "task": task,
            "new_classes": [],
            "per_class": {},
            "images": {"train": 1},
            "peak_memory_bytes": 10**9 * (task + 1),
        }
        entry |= {"seconds": (seconds or {}).get(task, {})} | (last if task == run.tasks - 1 else task_0)
        entry["metrics"] = {**entry["metrics"], "pixel_accuracy": 0.5}
        entries.append(entry)
    results.write(run.workdir, results.new("made by hand", config, 4, entries))


def cell(found, row, metric="all", column="3-2"):
    return next(one for one in found if (one.row, one.metric, one.column) == (row, metric, column))


def test_mean_and_deviation_over_seeds(tmp_path):
    made = planned(3, "shapes", tmp_path, seeds=3)
    started = plan.with_starts(made, made.runs)
    for run, value in zip([run for run in started if run.row == "NeST"], (0.30, 0.40, 0.47), strict=True):
        finish(run, (0.5, 0.25, value))
    finish(next(run for run in started if run.row == "Background"), (0.5, 0.125, 0.3333))
    path = report.write(made)

    found = report.cells(made)
    nest, background = cell(found, "NeST"), cell(found, "Background")
    assert nest.values == {42: pytest.approx(30), 43: pytest.approx(40), 44: pytest.approx(47)}
    assert nest.mean == pytest.approx(39) and nest.deviation == pytest.approx(statistics.stdev([30, 40, 47]))
    assert (background.mean, background.deviation) == (pytest.approx(33.33), None)
    assert cell(found, "Random").mean is None and nest.paper == 51.8

    lines = path.read_text().splitlines()
    rows = {
        line.split("|")[1].strip(): [text.strip() for text in line.split("|")[2:-1]]
        for line in lines
        if line[:1] == "|"
    }
    assert rows[""] == ["old", "new", "all", "paper old", "paper new", "paper all"]
    assert rows["NeST"] == ["50.00 ± 0.00", "25.00 ± 0.00", "39.00 ± 8.54", "61.7", "20.4", "51.8"]
    assert rows["Background"] == ["50.00", "12.50", "33.33", "45.2", "15.7", "38.2"]
    assert rows["Random"] == ["-", "-", "-", "43.5", "4.2", "34.1"]
    assert "4 of 12 runs are done" in path.read_text() and "Synthetic images" in path.read_text()

    with path.with_suffix(".csv").open() as file:
        numbers = {(row["row"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(numbers["NeST", "all"]["deviation"]) == pytest.approx(8.544004)
    assert numbers["Background", "all"]["deviation"] == "" == numbers["Random", "all"]["mean"]
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["comparable_with_the_paper"] is False and document["seeds"] == [42, 43, 44]
    for extra, comparable in (((), True), ((("log.every_steps", "5"),), True), ((("train.epochs", "3,3"),), False)):
        assert report.document(planned(3, extra=extra), [])["comparable_with_the_paper"] is comparable
    states = [run["state"] for run in document["runs"]]
    assert (states.count("done"), states.count("not run")) == (4, 8)


def test_a_table_of_single_numbers_has_the_papers_beside_each_and_a_mean(tmp_path):
    made = planned(7, workdir=tmp_path)
    for run in plan.with_starts(made, made.runs):
        if run.row == "MiB" or run.column in "AB":
            finish(run, (0.5, 0.5, {"A": 0.10, "B": 0.20, "C": 0.30, "D": 0.40, "E": 0.60}[run.column]))
    found = report.cells(made)
    assert cell(found, "MiB", column="avg").mean == pytest.approx(32)
    assert cell(found, "MiB+NeST", column="avg").mean is None  # three orders are missing
    text = report.markdown(made, found)
    row = next(line for line in text.splitlines() if line.startswith("| MiB "))
    assert row.split("|")[2:6] == [" 10.00 ", "  38.2 ", " 20.00 ", "  28.2 "]
    assert (
        "not the full data set: 1 images in task 0, not 9568" in text
    )  # order A is the protocol whose counts are published


def test_literature_is_marked_and_never_run(tmp_path):
    made = planned(10, workdir=tmp_path)
    text = report.markdown(made, report.cells(made))
    assert "| CoinSeg (swin_b, Deeplab+Mask2Former) (*literature*) |" in text and "75.5" in text
    assert not any(run.row.startswith(("CoinSeg", "Incrementer")) for run in made.runs)


def test_what_nest_costs(tmp_path):
    run = by_row(6, workdir=tmp_path)["MiB+NeST"]
    nest = {"statistics": 2.0, "pretuning": 4.0, "training": 30.0}
    finish(run, seconds={0: {"training": 540.0}, 1: nest, 2: nest})
    values = {one.metric: one.mean for one in report.cells(planned(6, "shapes", tmp_path))}
    assert values["extra_time"] == pytest.approx(100 * 12 / 600)
    assert values["extra_time_later"] == pytest.approx(100 * 12 / 60)
    assert values["nest_minutes"] == pytest.approx(0.2) and values["training_minutes"] == pytest.approx(10)
    assert values["memory_per_gpu_gb"] == pytest.approx(3)


def test_a_task_0_from_another_run_took_what_it_took_there(tmp_path):
    made = planned(3, "shapes", tmp_path)
    first, *_, last = plan.with_starts(made, made.runs)
    assert last.start == first.workdir
    finish(last, seconds={1: {"pretuning": 3.0, "training": 30.0}})
    cost = report.METRICS["extra_time"].value
    assert cost(results.read(last.workdir)) is None  # the other run is not there
    finish(first, seconds={0: {"training": 270.0}, 1: {"training": 1e9}})
    assert cost(results.read(last.workdir)) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------------------- launching


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """In the place of nest_jax.main: remembers the calls; `outcomes` says by row how one ends. A run leaves its results and task 0."""
    made, called, outcomes = planned(3, "shapes", tmp_path), [], {}
    runs = {run.workdir: run for run in made.runs}
    monkeypatch.setattr(
        rundir, "completed_tasks", lambda folder: [0] if (Path(folder) / "results.json").exists() else []
    )

    def call(arguments):
        flags, overrides = nest_main.parse(arguments)
        run = runs[flags.workdir]._replace(start=dict(overrides).get("init_from", ""))
        called.append((run.row, Path(run.start).parent.name))
        code = outcomes.get(run.row, 0)
        if code is KeyboardInterrupt:
            raise code
        if code == 0:
            finish(run)
        return code, "training stopped: unkd=nan" if code else ""

    monkeypatch.setattr(launch, "_call", call)
    return called, outcomes


def test_runs_share_task_0_and_the_second_call_has_nothing_to_do(calls, tmp_path, capsys):
    called, _ = calls
    arguments = ["--table=3", "--dataset=shapes", f"--workdir={tmp_path}"]
    assert main(arguments) == 0
    assert called == [("Random", ""), ("Background", "mib_random"), ("Two-Stage", "mib_random"), ("NeST", "mib_random")]
    assert "4 of 4 runs are done" in (tmp_path / "shapes" / "table-3.md").read_text()
    called.clear()
    capsys.readouterr()
    assert main(arguments) == 0 and called == []
    assert "4 runs, 4 done" in capsys.readouterr().out


def test_a_run_takes_the_task_0_that_is_there_and_keeps_the_one_it_began_with(calls, tmp_path):
    called, _ = calls
    arguments = ["--table=3", "--dataset=shapes", f"--workdir={tmp_path}", "--rows"]
    assert main([*arguments, "nest"]) == 0
    made = planned(3, "shapes", tmp_path)
    begun = next(run for run in made.runs if run.row == "Two-Stage")
    configs.claim(begun.config, begun.workdir)  # it has begun, with a task 0 of its own
    assert main([*arguments, "Random", "two-stage"]) == 0
    assert called == [("NeST", ""), ("Random", "mib_nest"), ("Two-Stage", "")]


def test_a_failure_does_not_stop_the_others(calls, tmp_path, capsys):
    called, outcomes = calls
    outcomes["Background"] = 3
    arguments = ["--table=3", "--dataset=shapes", f"--workdir={tmp_path}"]
    assert main(arguments) == 3
    assert [row for row, _ in called] == ["Random", "Background", "Two-Stage", "NeST"]
    out = capsys.readouterr().out
    assert (
        "failed: Background, 3-2, seed 42: exit code 3: training stopped: unkd=nan" in out and out.count("failed") == 1
    )
    called.clear()
    outcomes.clear()
    assert main(arguments) == 0 and called == [("Background", "mib_random")]


def test_runs_without_their_task_0_are_not_begun(calls, tmp_path, capsys):
    called, outcomes = calls
    outcomes["Random"] = 2
    assert main(["--table=3", "--dataset=shapes", f"--workdir={tmp_path}"]) == 3
    assert called == [("Random", "")]
    assert capsys.readouterr().out.count("which it starts from, is not there") == 3


def test_an_interrupt_ends_it_with_130(calls, tmp_path, capsys):
    called, outcomes = calls
    outcomes["Background"] = KeyboardInterrupt
    assert main(["--table=3", "--dataset=shapes", f"--workdir={tmp_path}"]) == 130
    assert len(called) == 2 and "the same command continues" in capsys.readouterr().out
    assert "1 of 4 runs are done" in (tmp_path / "shapes" / "table-3.md").read_text()


def test_a_workdir_of_another_recipe_is_refused_before_anything_is_run(calls, tmp_path, capsys):
    called, _ = calls
    made = planned(3, "shapes", tmp_path)
    finish(made.runs[3], train__epochs=(1, 1))
    assert main(["--table=3", "--dataset=shapes", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "train.epochs: (1, 1) there, (40, 20) now" in error and not called
    assert plan.outcome(made.runs[3]) is None and report.state(made.runs[3]) == "other recipe"
    finish(made.runs[2], log__every_steps=3, init_from="elsewhere")  # neither changes what is learnt
    assert report.state(made.runs[2]) == "done"


def test_a_process_that_ends_badly_tells_why(capfd):
    code, last = launch._call(["--config=configs/shapes.py:method=mibb"])
    assert code == 2 and last.startswith("error: ") and "method=mibb" in last
    assert "did you mean 'mib'" in capfd.readouterr().err  # and all of it is passed on


def test_a_run_is_told_to_stop_once_then_again_then_killed(monkeypatch):
    noting = "import signal, time; signal.signal(signal.SIGTERM, {}); print(flush=True); time.sleep(60)"
    for handler, code, patience in (("lambda *_: exit(7)", 7, 60.0), ("signal.SIG_IGN", -signal.SIGKILL, 0.1)):
        monkeypatch.setattr(launch, "PATIENCE", patience)
        with subprocess.Popen([sys.executable, "-c", noting.format(handler)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # its handler is there
            launch._end(process)
        assert process.returncode == code


def test_end_to_end(tmp_path):
    overrides = {key: value for key, value in tiny.OVERRIDES.items() if key != "tasks.name"}
    overrides |= {"tasks.classes": "1,2,3,4,5", "classifier_init.epochs": "1", "evaluate.pictures": "0"}  # two tasks
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    arguments = ["--table=3", "--dataset=shapes", f"--workdir={tmp_path}", *flags]
    assert main([*arguments, "--rows", "Background", "NeST"]) == 0
    folder = tmp_path / "shapes"
    background, nest = (results.read(folder / "3-2" / name / "seed-42") for name in ("mib", "mib_nest"))
    assert (
        background["tasks"][0]["metrics"] == nest["tasks"][0]["metrics"]
        and "training" not in nest["tasks"][0]["seconds"]
    )
    found = {(one["row"], one["metric"]): one for one in json.loads((folder / "table-3.json").read_text())["cells"]}
    for row, run in (("Background", background), ("NeST", nest)):
        assert found[row, "all"]["mean"] == pytest.approx(100 * run["tasks"][-1]["metrics"]["miou_all"])
        assert found[row, "old"]["values"] == {"42": pytest.approx(100 * run["tasks"][-1]["metrics"]["miou_old"])}
    assert "train.epochs=1,1" in (folder / "table-3.md").read_text()
    before = os.stat(folder / "3-2" / "mib" / "seed-42" / "results.json").st_mtime_ns
    assert main([*arguments, "--rows", "background"]) == 0
    assert os.stat(folder / "3-2" / "mib" / "seed-42" / "results.json").st_mtime_ns == before


# ------------------------------------------------------------------------------------------------------------- the list, the document


def test_list_tells_what_can_be_run_here(monkeypatch, tmp_path, capsys):
    for name in ("TFDS_DATA_DIR", "NEST_JAX_WEIGHTS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("VOC", "ADE"):
        monkeypatch.delenv(f"NEST_JAX_{name}_ROOT", raising=False)
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{number:2}  {table.title}\n" in "\n" + out for number, table in TABLES.items())
    assert "    rows: Random, Background, Two-Stage, NeST\n    runs: 4 a seed, 1 of them train task 0" in out
    assert "literature, not built here: CoinSeg" in out
    assert overview.here(planned(3, "shapes")) == "yes"
    data = "no data: set NEST_JAX_VOC_ROOT, or give --config.dataset.root=DIR"
    assert overview.here(planned(3)).startswith(f"no: {data}; no weights: resnet101_iabn_sync.pth.tar is not in ")
    monkeypatch.setenv("NEST_JAX_VOC_ROOT", str(tmp_path))
    (tmp_path / "resnet101_iabn_sync.pth.tar").write_bytes(b"")
    assert overview.here(planned(3)) == "yes"
    assert overview.here(planned(10)).startswith("no: no weights: jx_vit_base_p16_384")


def test_the_document_is_up_to_date():
    text = (CHECKOUT / "docs" / "reproducing.md").read_text()
    found = text.partition(reproducing.BEGIN)[2].partition(reproducing.END)[0]
    assert found.strip() == reproducing.text().strip(), f"run: {reproducing.BEGIN}"


def test_the_document_has_a_line_for_every_row_and_every_printed_number():
    text = reproducing.text()
    sections = text.split("### Table ")[1:]
    for section, table in zip(sections, TABLES.values(), strict=True):
        rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
        assert len(rows) == len(table.rows)
        for line, row in zip(rows, table.rows, strict=True):
            assert line.startswith(f"| {row.label} |".replace("*", r"\*"))
            assert ("none: literature" in line) == (row.variant is None)
            shown = [cell for cells in row.paper.values() for metric, cell in cells.items() if metric in table.metrics]
            assert all(str(number) in line for number in shown), line


def test_update_writes_between_its_marks_only(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{reproducing.BEGIN}\nstale\n{reproducing.END}\nafter\n")
    assert main(["--markdown", str(file)]) == 0
    assert file.read_text() == f"before\n{reproducing.BEGIN}\n\n{reproducing.text()}\n{reproducing.END}\nafter\n"
    file.write_text("no marks")
    with pytest.raises(InputError, match="lacks the lines"):
        reproducing.update(str(file))


def test_golden_files_that_the_document_names_exist():
    text = (CHECKOUT / "docs" / "reproducing.md").read_text()
    for files in reproducing.GOLDEN.values():
        for name in files:
            assert (CHECKOUT / "tests" / "golden" / name).exists() and name in text, name
    picks = {
        (key, value)
        for table in TABLES.values()
        for row in table.rows
        if row.variant
        for key, value in row.variant.pick.items()
    }
    assert all(word in reproducing.GOLDEN for words in reproducing.BY_PLUGIN.values() for word in words)
    assert all(value in plugins.names(recipes.SECTIONS[key]) for key, value in picks)
