//! What the host's firewall lets through between the guests' bridge and the world.
//!
//! ```text
//!  guest ── TAP ═ veth ── bridge ──▶ FORWARD ──▶ world       out:  -i <bridge>
//!                         bridge ◀── FORWARD ◀── world       back: -o <bridge>, of known connections
//! ```
//! Docker and most firewalls drop what is forwarded and not theirs: guests then have addresses and no
//! network. Chains to which FORWARD jumps are not followed: what they decide is another program's, and
//! a rule in front of them is all that is needed.

use std::io;
use std::process::{Command, Output};

use super::Finding;

/// Seconds that iptables waits for another one's lock: as long as any takes to load its rules.
const LOCK_SECONDS: &str = "5";

/// Where programs of administrators are if PATH does not have them, as for many users.
const ADMIN_PROGRAMS: &str = "/usr/sbin";

/// What there is to filter with, and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Firewall {
    /// The lines of `iptables -S FORWARD`.
    Iptables(Vec<String>),
    /// There is an iptables, which does not say.
    Unreadable(String),
    /// No iptables; the lines of `nft list chains`.
    Nft(Vec<String>),
    /// Neither program.
    None,
}

/// Which ways are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ways {
    /// From the bridge.
    pub(super) out: bool,
    /// Back to it.
    pub(super) back: bool,
}

/// What of a configuration list the firewall must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// The guests' bridge.
    pub(super) bridge: Option<String>,
    /// Guests share the host's address.
    pub(super) masquerade: bool,
    /// A CNI plugin opens the ways for each guest.
    pub(super) opened_by_plugin: bool,
}

impl Firewall {
    /// Reads the host's, of the network namespace that this runs in.
    pub(super) fn read() -> Self {
        match run("iptables", &["-w", LOCK_SECONDS, "-S", "FORWARD"]) {
            Ok(output) if output.status.success() => Self::Iptables(lines(&output.stdout)),
            Ok(output) => Self::Unreadable(lines(&output.stderr).join(" ")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Self::Unreadable(error.to_string())
            }
            Err(_) => match run("nft", &["list", "chains"]) {
                Ok(output) if output.status.success() => Self::Nft(lines(&output.stdout)),
                Ok(output) => Self::Unreadable(lines(&output.stderr).join(" ")),
                Err(_) => Self::None,
            },
        }
    }
}

/// The arguments for iptables that open the ways that are shut.
pub(super) fn opening(bridge: &str, ways: Ways) -> Vec<Vec<String>> {
    let rule = |matches: &[&str]| -> Vec<String> {
        // In front: behind a rule that rejects all, it would do nothing.
        let parts = [
            &["-w", LOCK_SECONDS, "-I", "FORWARD"],
            matches,
            &["-j", "ACCEPT"],
        ];
        parts.concat().into_iter().map(str::to_owned).collect()
    };
    let known = [
        "-o",
        bridge,
        "-m",
        "conntrack",
        "--ctstate",
        "RELATED,ESTABLISHED",
    ];
    let out = (!ways.out).then(|| rule(&["-i", bridge]));
    let back = (!ways.back).then(|| rule(&known));
    out.into_iter().chain(back).collect()
}

/// Runs a program of administrators, wherever it is.
pub(super) fn run(program: &str, args: &[&str]) -> io::Result<Output> {
    match Command::new(program).args(args).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Command::new(format!("{ADMIN_PROGRAMS}/{program}"))
                .args(args)
                .output()
        }
        output => output,
    }
}

fn lines(output: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(output);
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Whether guests reach the world.
pub(super) fn judge(firewall: &Firewall, needs: &Needs) -> Finding {
    let name = "forward-rules";
    let bridge = needs.bridge.as_deref();
    let program = "apt-get install iptables";
    match firewall {
        Firewall::None if needs.masquerade => Finding::fail(
            name,
            "the CNI configuration asks for ipMasq, and there is neither iptables nor nft to do it",
            program,
        ),
        Firewall::None => Finding::pass(
            name,
            "there is neither iptables nor nft, so nothing is dropped",
        ),
        Firewall::Unreadable(why) => Finding::warn(
            name,
            format!("the rules cannot be read: {why}"),
            "run cocoon as root; and if it is, have a kernel with iptables (ip_tables, nf_tables)",
        ),
        Firewall::Nft(chains) if nft_drops(chains) => Finding::warn(
            name,
            "a chain of nftables drops what is forwarded and nobody accepts",
            format!(
                "have that chain accept what comes in from {0}, and what goes out to it of known connections; with iptables installed, cocoon doctor --fix does it",
                bridge.unwrap_or("the guests' bridge")
            ),
        ),
        Firewall::Nft(_) => Finding::pass(name, "nftables drop nothing that is forwarded"),
        Firewall::Iptables(_) if needs.opened_by_plugin => {
            Finding::pass(name, "the CNI plugin firewall opens them for each guest")
        }
        Firewall::Iptables(rules) => iptables(name, rules, bridge),
    }
}

fn iptables(name: &'static str, rules: &[String], bridge: Option<&str>) -> Finding {
    let ways = ways(rules, bridge.unwrap_or_default());
    let rules: Vec<_> = opening(bridge.unwrap_or_default(), ways)
        .iter()
        .map(|args| format!("iptables {}", args[2..].join(" ")))
        .collect();
    match bridge {
        _ if rules.is_empty() => Finding::pass(name, "what guests send and get is forwarded"),
        Some(bridge) => Finding::fail(
            name,
            format!("FORWARD drops what goes between {bridge} and the world"),
            format!("cocoon doctor --fix, or: {}", rules.join("; ")),
        ),
        None => Finding::warn(
            name,
            "FORWARD drops what it does not know, and the CNI configuration names no bridge to look for",
            "see that FORWARD accepts what guests send and get",
        ),
    }
}

/// Which ways the rules leave open: in each, the first rule decides that speaks of all packets, or of
/// all of this bridge; without one, the chain's policy.
pub(super) fn ways(rules: &[String], bridge: &str) -> Ways {
    let policy = !rules.iter().any(|rule| rule == "-P FORWARD DROP");
    let decided = |of_bridge: &dyn Fn(&[&str]) -> bool| {
        let decide = |rule: &String| {
            let words: Vec<_> = rule.split_ascii_whitespace().collect();
            let rest = words.strip_prefix(&["-A", "FORWARD"])?;
            let jump = rest.iter().position(|word| *word == "-j")?;
            let (matches, target) = (&rest[..jump], rest.get(jump + 1)?);
            let speaks = matches.is_empty() || of_bridge(matches);
            match *target {
                "ACCEPT" if speaks => Some(true),
                // A rule that drops some of the bridge's packets is a user's choice, and no obstacle.
                "DROP" | "REJECT" if matches.is_empty() => Some(false),
                _ => None,
            }
        };
        rules.iter().find_map(decide).unwrap_or(policy)
    };
    let known = |matches: &[&str]| match matches {
        ["-m", "conntrack", "--ctstate", states] | ["-m", "state", "--state", states] => {
            states.split(',').any(|state| state == "ESTABLISHED")
        }
        _ => false,
    };
    Ways {
        out: decided(&|matches| matches == ["-i", bridge]),
        back: decided(&|matches| match matches {
            ["-o", to, rest @ ..] if *to == bridge => rest.is_empty() || known(rest),
            matches => known(matches),
        }),
    }
}

/// Whether `nft list chains` shows a chain that drops by default what is forwarded.
fn nft_drops(chains: &[String]) -> bool {
    chains
        .iter()
        .any(|line| line.contains("hook forward") && line.contains("policy drop"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Pass, Warn};
    use super::*;

    const KNOWN: &str = "-m conntrack --ctstate RELATED,ESTABLISHED";

    fn rules(text: &str) -> Vec<String> {
        text.split('\n').map(str::to_owned).collect()
    }

    fn needs(bridge: Option<&str>) -> Needs {
        Needs {
            bridge: bridge.map(str::to_owned),
            masquerade: true,
            opened_by_plugin: false,
        }
    }

    #[test]
    fn the_first_rule_that_speaks_of_all_decides_and_then_the_policy() {
        let back = format!("-A FORWARD -o cni0 {KNOWN} -j ACCEPT");
        let known = format!("-A FORWARD {KNOWN} -j ACCEPT");
        for (text, out, is_back) in [
            ("-P FORWARD ACCEPT".to_owned(), true, true),
            ("-P FORWARD DROP".to_owned(), false, false),
            ("-P FORWARD DROP\n-A FORWARD -i cni0 -j ACCEPT".to_owned(), true, false),
            ("-P FORWARD DROP\n-A FORWARD -o cni0 -j ACCEPT".to_owned(), false, true),
            (format!("-P FORWARD DROP\n{back}"), false, true),
            (format!("-P FORWARD DROP\n{known}"), false, true),
            ("-P FORWARD DROP\n-A FORWARD -i cni0 -j ACCEPT\n".to_owned() + &back, true, true),
            ("-P FORWARD DROP\n-A FORWARD -i other -j ACCEPT".to_owned(), false, false),
            ("-P FORWARD DROP\n-A FORWARD -i cni0 -s 10.0.0.1/32 -j ACCEPT".to_owned(), false, false),
            ("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER".to_owned(), false, false),
            ("-P FORWARD ACCEPT\n-A FORWARD -j DOCKER-USER".to_owned(), true, true),
            ("-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A FORWARD -i cni0 -j ACCEPT".to_owned(), false, false),
            ("-P FORWARD DROP\n-A FORWARD -j ACCEPT".to_owned(), true, true),
            ("-P FORWARD ACCEPT\n-A FORWARD -s 10.0.0.7/32 -j DROP".to_owned(), true, true),
            (String::new(), true, true),
        ] {
            let expected = Ways { out, back: is_back };
            assert_eq!(ways(&rules(&text), "cni0"), expected, "{text}");
        }
    }

    #[test]
    fn the_rules_that_are_added_open_both_ways() {
        let mut chain = rules("-P FORWARD ACCEPT\n-A FORWARD -j REJECT");
        let shut = ways(&chain, "br7");
        assert_eq!(opening("br7", shut).len(), 2);
        for args in opening("br7", shut) {
            chain.insert(1, args[2..].join(" ").replace("-I", "-A"));
        }
        let open = ways(&chain, "br7");
        assert_eq!(
            open,
            Ways {
                out: true,
                back: true
            }
        );
        assert!(opening("br7", open).is_empty());
    }

    #[test]
    fn each_kind_of_firewall_has_its_verdict() {
        let drop = || Firewall::Iptables(rules("-P FORWARD DROP"));
        let nft = |policy: &str| {
            Firewall::Nft(rules(&format!(
                "table inet filter {{\nchain forward {{\ntype filter hook forward priority filter; policy {policy};"
            )))
        };
        let plain = Needs {
            masquerade: false,
            ..needs(Some("cni0"))
        };
        let opened = Needs {
            opened_by_plugin: true,
            ..needs(Some("cni0"))
        };
        for (firewall, needs, expected) in [
            (Firewall::None, &needs(Some("cni0")), Fail),
            (Firewall::None, &plain, Pass),
            (Firewall::Unreadable("not root".into()), &plain, Warn),
            (nft("drop"), &plain, Warn),
            (nft("accept"), &plain, Pass),
            (drop(), &needs(Some("cni0")), Fail),
            (drop(), &needs(None), Warn),
            (drop(), &opened, Pass),
            (
                Firewall::Iptables(rules("-P FORWARD ACCEPT")),
                &needs(None),
                Pass,
            ),
        ] {
            let found = judge(&firewall, needs);
            assert_eq!(found.verdict, expected, "{firewall:?} {found:?}");
        }
    }
}
