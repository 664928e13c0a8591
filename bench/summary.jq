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
| sort_by((.where | rank(["native", "lab"])), (.guest | rank(["counter", "idle", "linux", "tiny"])),
    (.figure | rank(["boot", "restore", "restore-call", "pause", "halted", "beyond-ram",
        "beyond-ram-anonymous", "disk-read", "disk-write", "tcp-in", "tcp-out", "save-halted",
        "clone-running, 0 NICs", "clone-running, 1 NICs", "clone-identity, 0 NICs", "clone-identity, 1 NICs",
        "clone-exec, 0 NICs", "clone-exec, 1 NICs", "clone-memory"])),
    .mib, (.engine | rank(["micro", "cloud-hypervisor"])))
| {date: $date, revision: $revision, host: {cpu: $cpu, cpus: ($cpus | tonumber), kernel: $kernel, load: ($load | tonumber)},
    skipped: ($skipped | split("\n") | map(select(. != "") | sub("^SKIPPED: "; ""))), figures: .}
