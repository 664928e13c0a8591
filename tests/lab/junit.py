#!/usr/bin/env python3
"""junit.py RESULTS WHY: counts results.tsv against the plan, writes junit.xml, prints the closing lines.

A planned test without a result has failed, for the reason WHY. What failed is named once more at the
end, since the end is what CI shows. Exit code 1 if any has failed.
"""

import os
import sys
from xml.etree import ElementTree


def read(path):
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [line.rstrip("\n").split("\t") for line in file if line.strip()]


def main():
    folder, why = sys.argv[1:]
    done = {(name, engine): (status, seconds, reason)
            for status, name, engine, seconds, reason in read(os.path.join(folder, "results.tsv"))}
    counts = {"pass": 0, "fail": 0, "skip": 0}
    suite = ElementTree.Element("testsuite", name="lab")
    for file, name, engine, _ in read(os.path.join(folder, "plan")):
        status, seconds, reason = done.get((name, engine), ("fail", "0", why))
        label = name if engine == "-" else f"{name} [{engine}]"
        if status == "fail":
            print(f"failed: {label}: {reason}")
        counts[status] += 1
        case = ElementTree.SubElement(suite, "testcase", classname=os.path.basename(file), name=label, time=seconds)
        if status != "pass":
            ElementTree.SubElement(case, "failure" if status == "fail" else "skipped", message=reason)
    ElementTree.ElementTree(suite).write(os.path.join(folder, "junit.xml"))
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    sys.exit(1 if counts["fail"] else 0)


if __name__ == "__main__":
    main()
