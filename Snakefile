# The job of the paper as a graph of runs: each is one notebook, executed by papermill, whose metrics.json is the rule's output. What is run with which
# parameters stands in profiles/<profile>.yaml and profiles/systems.yaml; where it runs, in profiles/<executor>/. CONTRIBUTING.md shows the commands.
import os, shlex, sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError


def read(name): return yaml.safe_load(Path(workflow.basedir, "profiles", f"{name}.yaml").read_text(encoding="utf-8"))


def chosen(names, there, what): # names, or an error that lists what there is
    for name in names:
        if name not in there: raise WorkflowError(f"{what} {name!r} is not known; choose from: {', '.join(map(str, there))}")
    return list(names)


# --config profile=real seeds=3 systems=baseline,s2dm_sp models=real-m
chosen(config, ("profile", "models", "systems", "seeds"), "--config")
NAME = config.get("profile", "small")
chosen([NAME], sorted(p.stem for p in Path(workflow.basedir, "profiles").glob("*.yaml") if p.stem != "systems"), "profile")
PROFILE = read(NAME)

def resolved(given): # folder in runs/ and parameters of a system; one that names no edition has the profile's
    if given["variant"] != "baseline": given = given | {"edition": given.get("edition", PROFILE["edition"])}
    return "-".join(given[k] for k in ("variant", "edition", "control", "head") if given.get(k, "paper") != "paper"), given


FOLDER = {name: resolved(given)[0] for name, given in read("systems").items()} # name in systems.yaml -> folder
SYSTEMS = dict(map(resolved, read("systems").values())) # folder -> parameters
RUNS, FIGURES = (os.environ.get(f"S2DM_{what.upper()}") or what for what in ("runs", "figures"))
MODELS = {name.strip("/").replace("/", "--"): name for name in str(config.get("models", ",".join(PROFILE["models"]))).split(",")} # folder -> encoder
REFERENCES = PROFILE.get("references", "") if {"all", "baseline"} & {*config.get("systems", "all").split(",")} else "" # the baseline's analysis trains these readers
CUDA = "" if PROFILE["gpus"] else "CUDA_VISIBLE_DEVICES= " # no GPU asked for, none used, whether there is one or not


def scope(name): # systems and seeds of a target
    part, seeds = PROFILE[name], str(config.get("seeds", PROFILE[name]["seeds"]))
    if not seeds.isdecimal() or int(seeds) < 1: raise WorkflowError(f"seeds={seeds} is not possible; give their number, 1 or more")
    systems = config["systems"].split(",") if "systems" in config else part["systems"]
    return [*dict.fromkeys(FOLDER[name] for name in chosen(FOLDER if systems == "all" else systems, FOLDER, "system"))], range(int(seeds))


def record(stage, model, system, seed): return f"{RUNS}/{stage}/{model}/{system}/seed{seed}/metrics.json"


def s2dm_of(system): # the run of 03_pretrain that a system reads; None: it has no S2DM
    return resolved({k: v for k, v in SYSTEMS[system].items() if k in ("variant", "edition")})[0].removeprefix("baseline") or None


def records(target): # every metrics.json that a report is made from
    systems, seeds = scope(target)
    runs = [(stage, s) for s in systems for stage in ("finetune", "evaluate", "analyse")]
    runs += [("pretrain", s) for s in dict.fromkeys(map(s2dm_of, systems)) if s]
    return [record(stage, m, s, seed) for seed in seeds for m in MODELS for stage, s in runs]


PRETRAINED = {s2dm_of(name): {k: v for k, v in given.items() if k in ("variant", "edition")} for name, given in SYSTEMS.items()}


def given(stage): # the parameters of a run, as papermill takes them
    def of(w):
        system = (PRETRAINED if stage == "pretrain" else SYSTEMS)[w.system] | (dict(references=REFERENCES) if REFERENCES and (stage, w.system) == ("analyse", "baseline") else {})
        return arguments(dict(model=MODELS[w.model], **system, seed=w.seed) | PROFILE.get("parameters", {}).get(stage, {}))
    return of


def arguments(parameters): return " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in parameters.items())


def before(stage): # what a run needs to be there
    def of(w):
        need = [f"{RUNS}/encoder/{w.model}/seed0/metrics.json"] if w.model in PROFILE.get("encoders", {}) else []
        if stage == "finetune" and s2dm_of(w.system): need += [record("pretrain", w.model, s2dm_of(w.system), w.seed)]
        if stage in ("evaluate", "analyse"): need += [record("finetune", w.model, w.system, w.seed)]
        if stage == "analyse": need += [record("evaluate", w.model, w.system, w.seed)]
        if REFERENCES and stage == "analyse" and w.system != "baseline": need += [record("analyse", w.model, "baseline", w.seed)]
        return need if len(need) or not PROFILE.get("data") else [ancient(f"{RUNS}/data/metrics.json")]
    return of


# the command of every run; one that fails says which notebook failed and where it lies
RUN = (f"{CUDA}S2DM_FIGURES={{params.figures}} {shlex.quote(sys.executable)} profiles/run.py {{log.text}}.lock --log-output --no-progress-bar nbs/{{params.notebook}}.ipynb {{log.notebook}} {{params.given}}"
       " > {log.text} 2>&1 || {{ status=$?; {{ echo; tail -n 25 {log.text}; echo; echo 'FAILED: nbs/{params.notebook}.ipynb {params.given}'; "
       "echo 'It lies, with its traceback, in {log.notebook}; what it printed, in {log.text}.'; echo 'Once the cause is gone, the same command goes on where it stopped.'; echo; }} >&2; exit $status; }}")


onstart: # one call at a time; the system frees this lock when the process ends, however it ends
    from filelock import FileLock, Timeout
    os.makedirs(RUNS, exist_ok=True)
    try: globals()["LOCK"] = FileLock(f"{RUNS}/.lock").acquire(timeout=0)
    except Timeout: raise WorkflowError(f"another call of snakemake works in {RUNS}; wait for it, or choose another folder with S2DM_RUNS")


wildcard_constraints: model="[^/]+", system="[^/]+", seed="[0-9]+"


rule data:
    output: f"{RUNS}/data/metrics.json"
    log: notebook=f"{RUNS}/data/run.ipynb", text=f"{RUNS}/data/run.log"
    params: notebook="01_data", given="", figures=FIGURES
    resources: runtime=120
    message: "01_data: fetch, verify and describe the corpora"
    shell: RUN


if "encoders" in PROFILE:
    rule encoder:
        input: [ancient(f"{RUNS}/data/metrics.json")] if PROFILE.get("data") else []
        output: f"{RUNS}/encoder/{{model}}/seed0/metrics.json"
        log: notebook=f"{RUNS}/encoder/{{model}}/seed0/run.ipynb", text=f"{RUNS}/encoder/{{model}}/seed0/run.log"
        params: notebook="02_encoder", given=lambda w: arguments(dict(name=w.model) | PROFILE["encoders"][w.model]), figures=f"{RUNS}/encoder/{{model}}/seed0/figures"
        threads: PROFILE["threads"]
        resources: gpu=PROFILE["gpus"], mem_mb=PROFILE["mem_mb"], runtime=PROFILE["minutes"]["encoder"]
        message: "02_encoder: {wildcards.model}"
        shell: RUN


for number, stage in enumerate(("pretrain", "finetune", "evaluate", "analyse"), 3):
    folder = f"{RUNS}/{stage}/{{model}}/{{system}}/seed{{seed}}"
    rule:
        name: stage
        input: before(stage)
        output: f"{folder}/metrics.json"
        log: notebook=f"{folder}/run.ipynb", text=f"{folder}/run.log"
        params: notebook=f"0{number}_{stage}", given=given(stage), figures=f"{folder}/figures"
        threads: PROFILE["threads"]
        resources: gpu=PROFILE["gpus"], mem_mb=PROFILE["mem_mb"], runtime=PROFILE["minutes"][stage]
        message: f"0{number}_{stage}: {{wildcards.model}}, {{wildcards.system}}, seed {{wildcards.seed}}"
        shell: RUN


for target, folder in (("reproduce", f"{RUNS}/figures"), ("full", FIGURES)): # the main systems, and everything
    rule:
        name: target
        default_target: target == "reproduce"
        input: f"{folder}/{NAME}/report.html", records(target) # a record that was thrown away is made again
    rule:
        name: f"report_{target}"
        input: records(target)
        output: f"{folder}/{NAME}/report.html"
        log: notebook=f"{RUNS}/report/{NAME}/{target}.ipynb", text=f"{RUNS}/report/{NAME}/{target}.log"
        params: notebook="07_report", given=arguments(dict(profile=NAME, models=",".join(MODELS.values()), edition=PROFILE["edition"])), figures=folder
        resources: mem_mb=PROFILE["mem_mb"], runtime=60
        message: f"07_report: {folder}/{NAME}/report.html"
        shell: RUN
    if workflow.is_main_process: # the plan in one line
        print(f"{NAME}, {target}: {len(records(target))} runs, {sum(map(os.path.exists, records(target)))} of them done", file=sys.stderr)
