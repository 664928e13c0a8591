# Snapshots: saved while the guest counts, found damaged, moved, removed; pause and resume.
# images: tiny

SNAPSHOTS=$COCOON_ROOT/snapshots

# The last number that the guest has printed.
count() {
    grep -aoE 'count-[0-9]+' "$COUNTING" | tail -n 1 | cut -d- -f2
}

count_is_above() {
    [ "$(count)" -gt "$1" ]
}

# The guest prints a number each second; under emulation a second may be long.
goes_on() {
    wait_for 30 "$1 the guest counts on" count_is_above "$(count)"
}

stands_still() {
    local before
    # What was printed before may still be on its way to the log.
    sleep 1
    before=$(count)
    sleep 3
    assert_eq "$(count)" "$before" "$1: the count of a paused guest"
}

# What the guest's clock says, between two looks at this host's. An emulated guest loses ticks while it boots, and is
# late by some seconds from then on.
look_at_clocks() {
    before=$(date +%s)
    clock=$(cocoon vm exec counter -- date +%s)
    after=$(date +%s)
}

# knows_the_time WHEN LATE: it is LATE seconds late at most; the seconds of standing still are not missed, for
# somebody has told the guest the time, or its clock went on. Each look is cut to whole seconds.
knows_the_time() {
    local before clock after
    look_at_clocks
    [ "$clock" -ge $((before - $2 - 2)) ] && [ "$clock" -le $((after + 1)) ] ||
        fail "$1: the guest's clock says $clock, which is not $2 s before $before, and not after $after"
}

# The snapshots that may be used, by name.
names() {
    cocoon snapshot list -o json | json 'map(.name // "-") | sort | join(" ")'
}

gc_leaves_no_staged_snapshot() {
    cocoon gc && ! compgen -G "$SNAPSHOTS/.staged-*"
}

one_of_two_saves_with_one_name_is_refused() {
    local one two codes=0
    # That one fails is wanted, and no word for the line of the test.
    (cocoon snapshot save --name nightly --description "before the upgrade" counter >/lab/save-1 2>&1 || exit 1) &
    one=$!
    (cocoon snapshot save --name nightly --description "before the upgrade" counter >/lab/save-2 2>&1 || exit 1) &
    two=$!
    wait $one || codes=$((codes + $?))
    wait $two || codes=$((codes + $?))
    assert_eq "$codes" 1 "codes of two saves"
    assert_has "$(cat /lab/save-1 /lab/save-2)" "the name nightly is taken" "one of two saves"
    assert_has "$(cat /lab/save-1 /lab/save-2)" "the guest stood still for" "the other"
    goes_on "after a save"
    assert_eq "$(cocoon snapshot list -o json | json 'map("\(.name) \(.vm_name) \(.state) \(.cpu) \(.description)")')" \
        '["nightly counter ready 1 before the upgrade"]' "snapshot list"
    assert_has "$(cocoon snapshot list --vm counter)" nightly "snapshot list --vm"
    assert_eq "$(cocoon snapshot inspect --full nightly | json '"\(.damage) \(.engine) \(.disks | length)"')" \
        "null $COCOON_ENGINE 1" "snapshot inspect"
}

a_paused_guest_is_saved_and_stays_paused() {
    local before clock after late
    look_at_clocks
    late=$((after > clock ? after - clock : 0))
    cocoon vm pause counter
    assert_eq "$(vm_field counter .state)" paused "state"
    assert_has "$(cocoon vm list)" paused "vm list"
    stands_still "after pause"
    cocoon vm pause counter
    refused "resume" cocoon vm start counter
    cocoon snapshot save counter
    assert_eq "$(vm_field counter .state)" paused "state after a save"
    stands_still "after a save"
    cocoon vm resume counter
    assert_eq "$(vm_field counter .state)" running "state after resume"
    goes_on "after resume"
    knows_the_time "after resume" $late
    cocoon vm resume counter
}

an_exported_snapshot_is_imported_whole_and_a_damaged_one_is_found() {
    cocoon snapshot export nightly /lab/nightly.tar.zst
    cocoon snapshot import --name from-file --description copy /lab/nightly.tar.zst
    assert_eq "$(cocoon snapshot inspect --full from-file | json '"\(.damage) \(.description) \(.vm_name)"')" \
        "null copy counter" "an imported snapshot"
    refused "the name nightly is taken" cocoon snapshot import /lab/nightly.tar.zst
    cocoon snapshot export nightly - | cocoon snapshot import --name from-pipe -
    cocoon snapshot export from-pipe /lab/exported/
    refused "not empty" cocoon snapshot export from-pipe /lab/exported
    cocoon snapshot import --name from-folder /lab/exported
    refused "image pull" "$COCOON_BIN" --root-dir /lab/elsewhere snapshot import /lab/nightly.tar.zst
    assert_eq "$(find /lab/elsewhere/snapshots -mindepth 1)" "" "what a refused import left"
    local memory state
    memory=$(echo "$SNAPSHOTS/$(cocoon snapshot inspect from-file | json .id)"/vm/memory*)
    truncate -s -4096 "$memory"
    refused "bytes long" cocoon snapshot inspect from-file
    refused "bytes long" cocoon snapshot export from-file /lab/never.tar.zst
    state=$(echo "$SNAPSHOTS/$(cocoon snapshot inspect from-pipe | json .id)"/vm/state*)
    printf '\377' | dd of="$state" bs=1 seek=100 conv=notrunc status=none
    refused "digest" cocoon snapshot inspect from-pipe
    printf '\377' | dd of="/lab/exported/vm/${memory##*/}" bs=1 conv=notrunc status=none
    refused "digest" cocoon snapshot import --name never /lab/exported
    head -c 100000 /lab/nightly.tar.zst >/lab/cut.tar.zst
    refused "archive" cocoon snapshot import --name never /lab/cut.tar.zst
    rm -r /lab/exported
    [ ! -e /lab/never.tar.zst ] || fail "a refused export left a file"
}

a_killed_save_leaves_a_running_guest_and_what_gc_finds() {
    local save
    "$COCOON_BIN" --root-dir "$COCOON_ROOT" --run-dir "$COCOON_ROOT/run" --log-dir "$COCOON_ROOT/log" \
        snapshot save --name killed counter &
    save=$!
    until compgen -G "$SNAPSHOTS/.staged-*" >/dev/null; do :; done
    kill -9 $save
    goes_on "after a killed save"
    assert_lacks "$(names)" killed "snapshot list after a killed save"
    wait_for 60 "gc after a killed save" gc_leaves_no_staged_snapshot
    cocoon snapshot save --name killed counter
    goes_on "after another save"
}

a_full_disk_is_told_and_leaves_nothing() {
    mount -t tmpfs -o size=4M full "$SNAPSHOTS"
    at_exit "! mountpoint -q $SNAPSHOTS || umount -l $SNAPSHOTS"
    refused "space" cocoon snapshot save --name full counter
    assert_has "$refused_with" "hint: the disk is full" "a save on a full disk"
    assert_eq "$(ls -A "$SNAPSHOTS")" "" "what a failed save left"
    refused "space" cocoon snapshot import --name full /lab/nightly.tar.zst
    assert_eq "$(ls -A "$SNAPSHOTS")" "" "what a failed import left"
    umount "$SNAPSHOTS"
    assert_lacks "$(names)" full "snapshot list after a full disk"
    goes_on "after a full disk"
}

snapshots_outlive_their_vm_and_keep_its_image() {
    cocoon vm pause counter
    cocoon vm stop counter
    console_log_has counter "cocoon: unmounting" || fail "a paused guest was not asked to power off"
    refused "not running" cocoon snapshot save counter
    cocoon vm rm counter
    assert_has "$(cocoon snapshot list --vm counter -o json | json 'map(.name)')" nightly "snapshots of a removed VM"
    assert_has "$(cocoon image rm "$REGISTRY/tiny:latest" 2>&1)" "snapshot nightly" "image rm"
    cocoon gc
    cocoon snapshot import --name again /lab/nightly.tar.zst
    cocoon image pull "$REGISTRY/tiny:latest"
}

# One VM for all of it: each boot costs ten seconds.
lab_snapshots_are_whole_and_their_guest_goes_on() { # 400 s
    only_if_long micro
    run_tiny counter
    at_exit 'cocoon snapshot rm $(cocoon snapshot list -q) 2>/dev/null'
    COUNTING=$(vm_field counter .console_log)
    in_guest counter '{ (i=0; while :; do i=$((i+1)); echo count-$i >/dev/console; sleep 1; done) & }'
    goes_on "at first"
    one_of_two_saves_with_one_name_is_refused
    a_paused_guest_is_saved_and_stays_paused
    an_exported_snapshot_is_imported_whole_and_a_damaged_one_is_found
    a_killed_save_leaves_a_running_guest_and_what_gc_finds
    a_full_disk_is_told_and_leaves_nothing
    snapshots_outlive_their_vm_and_keep_its_image
    refused "no-such" cocoon snapshot rm nightly no-such
    assert_has "$(names)" nightly "snapshots after a refused rm"
    # shellcheck disable=SC2046
    cocoon snapshot rm $(cocoon snapshot list -q)
    cocoon gc
    assert_eq "$(cocoon snapshot list -o json)" "[]" "snapshots after rm"
    assert_eq "$(ls -A "$SNAPSHOTS") $(find "$COCOON_ROOT/locks" -name 'snapshot-*')" " " "what is left after rm and gc"
}
