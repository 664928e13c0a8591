# Shows a file of bench/results.

def left($width): . + " " * ($width - length);
def right($width): " " * ($width - length) + .;

def number:
    if . == null then ""
    elif . >= 100 then round | tostring
    else (. * 100 | round) as $n
        | "\($n / 100 | floor).\($n % 100 | tostring | if length < 2 then "0" + . else . end)"
    end;

def row: (.[0] | left(7)) + (.[1] | left(9)) + (.[2] | left(33)) + (.[3] | left(18)) +
    (.[4:9] | map(right(9)) | add) + (.[9] | right(7)) + "  " + .[10];

"engines at \(.revision), on \(.host.cpus) x \(.host.cpu), Linux \(.host.kernel), with a load of \(.host.load // "?")",
"ratio: to the peer\u0027s median; of times and memory less is better, of MiB/s more",
"",
(["where", "guest", "figure", "engine", "min", "median", "max", "unit", "n", "ratio", "budget"] | row),
(.figures[]
    | [.where, .guest, (if .mib > 0 then "\(.figure), \(.mib) MiB" else .figure end), .engine, (.min, .median, .max | number), .unit, (.n | tostring),
       (.ratio | number), (if .budget then "\(.budget): \(if .met then "met" elif .met == null then "no peer" else "MISSED" end)" else "" end)]
    | row),
"",
(.skipped[] | "SKIPPED: " + .),
([.figures[] | select(.met != null)] | "\(map(select(.met)) | length) budgets met, \(map(select(.met | not)) | length) missed")
