# The engines by themselves, at the port: the conformance cases of tests/engine, whose program
# tests/tier builds for each engine. COCOON_ENGINE_LONG=1 adds cases that take a minute each, and what
# the tests before this file have seen of an engine in another way.
# images: guest

# engine_cases GROUP runs a group of cases, which closes with its figures.
engine_cases() {
    local variable=ENGINE_TESTS_${COCOON_ENGINE//-/_} code=0
    [ -n "${!variable:-}" ] || skip "no test program of this engine: $variable is not set"
    # What it saves is large; the system's own temporary folder is memory here.
    mkdir -p /lab/engine
    export TMPDIR=/lab/engine COCOON_ENGINE_GUEST=${LAB_IMAGE_guest%/oci}
    "${!variable}" "$1::" || code=$?
    rm -rf /lab/engine
    return $code
}

lab_engine_begins_and_ends_vms() { # 400 s
    only_if_long
    engine_cases life
}

lab_engine_has_the_devices_of_the_spec() { # 600 s
    only_if_long
    engine_cases devices
}

lab_engine_saves_and_restores() { # 600 s
    only_if_long
    engine_cases saved
}

lab_engine_grows_what_it_restores() { # 600 s
    only_if_long
    engine_cases grow
}

lab_engine_has_what_it_alone_has() { # 200 s
    only_if_long micro
    engine_cases special
}
