# Tests of the lab's own: some end the lab host they run in. /run/lab is this run's folder of results,
# which a new lab host finds as the dead one left it.
# engines: none

lab_before_a_death() {
    # That it is not run again after a death.
    [ ! -e /run/lab/ran-before ] || fail "it ran a second time"
    touch /run/lab/ran-before
}

lab_dies_once_by_panic() {
    [ ! -e /run/lab/panicked ] || return 0
    touch /run/lab/panicked
    echo c >/proc/sysrq-trigger
    sleep 60
}

lab_dies_always_by_poweroff() {
    echo o >/proc/sysrq-trigger
    sleep 60
}

lab_dies_once_by_triple_fault() {
    [ ! -e /run/lab/reset ] || return 0
    touch /run/lab/reset
    echo triple >/sys/kernel/reboot/type
    echo 1 >/sys/kernel/reboot/force
    echo b >/proc/sysrq-trigger
    sleep 60
}

lab_freezes_once() {
    [ ! -e /run/lab/froze ] || return 0
    touch /run/lab/froze
    kill "$(cat /run/heartbeat)"
    sleep 100
}

lab_fails_once_and_lives() {
    [ -e /run/lab/failed ] || { touch /run/lab/failed && fail "for the first time"; }
}

lab_fails_once_with_what_the_program_said() {
    [ ! -e /run/lab/told ] || return 0
    touch /run/lab/told
    printf '#!/bin/sh\necho "error: it is so" >&2\nexit 1\n' >/lab/program
    chmod +x /lab/program
    COCOON_BIN=/lab/program
    cocoon vm list # the line that is named
}

lab_fails_for_good_where_a_program_died_of_a_forbidden_call() {
    [ ! -e /run/lab/forbidden ] || return 0
    touch /run/lab/forbidden
    echo "seccomp: forbidden system call 257 on an I/O thread"
    fail "and not again"
}

lab_after_all() {
    [ -e /run/lab/ran-before ]
}
