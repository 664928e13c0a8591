# kill -9 at every step of every verb, with a kernel and a KVM of our own: tests/cli/killed.rs, whose
# programs tests/tier builds when COCOON_ENGINE_LONG asks for it. With micro it is part of the root tier,
# where any KVM will do.

lab_verbs_may_be_killed_at_every_step() { # 2400 s
    only_if_long
    [ -n "${COCOON_ENGINE_KILLED_TESTS:-}" ] || skip "no test program: COCOON_ENGINE_KILLED_TESTS is not set"
    # What is saved is large; the system's own temporary folder is memory here.
    mkdir -p /lab/killed
    TMPDIR=/lab/killed RUST_BACKTRACE=0 COCOON_TEST_ENGINE=$COCOON_ENGINE COCOON_TEST_PROGRAM=$COCOON_ENGINE_KILLED_PROGRAM \
        "$COCOON_ENGINE_KILLED_TESTS" --test-threads 1 killed::
}
