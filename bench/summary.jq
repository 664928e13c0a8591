# From samples to what bench/results keeps: each figure of each engine, its peer and its budget.
#     {"where", "guest", "figure", "mib", "unit", "engine", "value"}...    the samples

# Budgets of the built-in engine. Those of time hold natively; in the lab nothing has a speed of its
# own, there the engine is judged by its peer: 5 % more is what two runs of the same program differ by.
# `restore` is the median of the engine's own call to restore the same kind of guest in the same place, without
# what stands around it here: two processes to start and the records. `single` is that of one clone. The time of
# CNI's programs is theirs.
def budget:
    if .figure == "clone-running, 0 NICs" then
        if .engine != "micro" and .restore then {most: (.restore * 1.5), says: "<= 1.5 x its restore"}
        elif .engine == "micro" and .where == "native" then {most: 10, says: "<= 10 ms"}
        else null end
    elif .figure == "version" then {most: 3, says: "<= 3 ms"}
    elif .figure == "list, 1000 VMs" then {most: 5, says: "<= 5 ms"}
    elif .figure == "pull" and .engine == "cocoon" then {most: (if .peer then .peer / 2 else null end), says: "<= half its peer"}
    elif .figure == "run-share, 0 NICs" and .where == "native" then {most: 30, says: "<= 30 ms"}
    elif .figure == "run-share, 1 NICs" and .where == "native" then {most: 40, says: "<= 40 ms"}
    elif .figure == "64-clones-wall" and .single then {most: (.single * 25), says: "<= 25 x one"}
    elif .engine != "micro" then null
    elif .figure == "beyond-ram" then {most: 5120, says: "<= 5 MiB"}
    elif .where == "native" and .figure == "restore" then {most: 10, says: "<= 10 ms"}
    elif .figure == "boot" or .figure == "restore" then
        {most: (if .peer then .peer * 1.05 else null end), says: "<= its peer + 5 %"}
    else null end;

# The guest whose bare restore is the peer of a clone's: one that halts, or a Linux.
def bare: {"idle": "counter", "tiny": "linux"}[.guest];

def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;

def thousandth: . * 1000 | round / 1000;

def rank($list): . as $one | $list | index($one) // length;

map(.value |= thousandth)
| group_by(.where, .guest, .figure, .mib, .engine)
| map(.[0] + {n: length, min: map(.value) | min, median: map(.value) | median, max: map(.value) | max,
    samples: map(.value)} | del(.value))
| . as $all
| map(
    . as $one
    | ($all[] | select(.engine != $one.engine and [.where, .guest, .figure, .mib] ==
        [$one.where, $one.guest, $one.figure, $one.mib]) | .median) // null
    | . as $peer
    | $one + {peer: $peer, ratio: (if ($peer // 0) > 0 then $one.median / $peer | thousandth else null end)}
    | . + {restore: ([$all[] | select(.figure == "restore-call" and .engine == $one.engine and .where == $one.where
            and .guest == ($one | bare)) | .median] | min),
        single: ([$all[] | select(.figure == "1-clones-wall" and .engine == $one.engine and .where == $one.where) | .median] | min)}
    | . + {budget: budget}
    | . + {met: (if .budget.most then .median <= .budget.most else null end), budget: .budget.says}
    | del(.peer, .restore, .single))
| sort_by((.where | rank(["native", "lab"])), (.guest | rank(["host", "debian12", "disk2g", "counter", "idle", "linux", "tiny"])),
    (.figure | rank(["version", "list, 1000 VMs", "list, 10000 VMs", "pull", "pull-memory", "disk-pull", "disk-pull-memory", "boot", "restore", "restore-call", "pause", "halted", "beyond-ram",
        "beyond-ram-anonymous", "disk-read", "disk-write", "tcp-in", "tcp-out", "run-share, 0 NICs", "run-share, 1 NICs",
        "1-runs-wall", "1-runs-busy", "1-runs-p50", "1-runs-p99", "16-runs-wall", "16-runs-busy", "16-runs-p50", "16-runs-p99",
        "64-runs-wall", "64-runs-busy", "64-runs-p50", "64-runs-p99", "save-halted",
        "clone-running, 0 NICs", "clone-running, 1 NICs", "clone-identity, 0 NICs", "clone-identity, 1 NICs",
        "clone-exec, 0 NICs", "clone-exec, 1 NICs",
        "1-clones-wall", "1-clones-busy", "1-clones-p50", "1-clones-p99", "4-clones-wall", "4-clones-busy", "4-clones-p50", "4-clones-p99",
        "16-clones-wall", "16-clones-busy", "16-clones-p50", "16-clones-p99", "64-clones-wall", "64-clones-busy", "64-clones-p50", "64-clones-p99",
        "clone-memory"])),
    .mib, (.engine | rank(["cocoon", "micro", "cloud-hypervisor"])))
| {date: $date, revision: $revision, host: {cpu: $cpu, cpus: ($cpus | tonumber), kernel: $kernel, load: ($load | tonumber)},
    skipped: ($skipped | split("\n") | map(select(. != "") | sub("^SKIPPED: "; ""))), figures: .}
