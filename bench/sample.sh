# Takes samples of the engines, those that are still missing, and writes those of the program. Sourced by bench/run,
# bench/native and bench/lab.
#
#     $ENGINES             the engines, in the order of their turns
#     $COCOON_ENGINE_BENCH_<engine>    their programs
#     $OUT/<sample>.<mib>.<engine>.<round>.json    a sample; it is whole or absent
#     $OUT/skipped         what could not be had, and why
#     $SAVED/<guest>.<mib>.<engine>    a saved VM

# What the slowest sample, saving 2 GiB under emulation, may take.
SAMPLE_SECONDS=150

skipped() {
    echo "SKIPPED: $1" | tee -a "${OUT:-$work/native}/skipped"
}

# figure ENGINE GUEST FIGURE MIB UNIT NUMBER VALUE...: samples of one figure, in a file of their own.
figure() {
    local engine=$1 guest=$2 figure=$3 mib=$4 unit=$5 number=$6
    shift 6
    printf '%s\n' "$@" | jq -c --arg engine "$engine" --arg guest "$guest" --arg figure "$figure" --argjson mib "$mib" \
        --arg unit "$unit" '{engine: $engine, guest: $guest, figure: $figure, mib: $mib, unit: $unit, value: .}' \
        >"$OUT/${figure//[ ,]/_}.$mib.$engine.$number.json"
}

# in_turn ROUND SAMPLE MIB: one sample of each engine; who comes first changes with the rounds.
in_turn() {
    local engine engines=$ENGINES
    [ $(($1 % 2)) = 1 ] || engines=$(tr ' ' '\n' <<<"$ENGINES" | tac)
    for engine in $engines; do
        take "$engine" "$@"
    done
}

# take ENGINE ROUND SAMPLE MIB
take() {
    local engine=$1 round=$2 sample=$3 mib=$4 guest=${3%-*} try
    local saved=$SAVED/$guest.$mib.$engine out=$OUT/$sample.$mib.$engine.$round.json
    [ ! -e "$out" ] || return 0
    [ ! -e "$OUT/$guest.$mib.$engine.cannot" ] || [ "${sample#*-}" = boot ] || return 0
    # A lab host that died took its saved VMs with it.
    case $sample in
    *-save) rm -rf "$saved" ;;
    *-restore) [ -e "$saved" ] || take "$engine" "again-$round" "$guest-save" "$mib" ;;
    esac
    for try in 1 2; do
        case $sample in *-restore) [ -e "$saved" ] || return 0 ;; esac
        if run_sample; then
            mv "$out.new" "$out"
            return
        fi
    done
    rm -rf "$out.new"
    [ "${sample#*-}" != save ] || { rm -rf "$saved" && touch "$OUT/$guest.$mib.$engine.cannot"; }
    skipped "$engine $sample of $mib MiB, round $round: $(grep -m 1 -A 1 panicked "$out.log" | tail -n 1)"
}

run_sample() {
    local program=COCOON_ENGINE_BENCH_${engine//-/_}
    [ "$try" = 1 ] || [ "${sample#*-}" != save ] || rm -rf "$saved"
    RUST_BACKTRACE=0 timeout --kill-after=5 $SAMPLE_SECONDS \
        "${!program}" --sample "$sample" "$mib" "$saved" >"$out.new" 2>"$out.log" </dev/null
}
