//! Random trees: what goes in as a tar comes out of the image.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::Compression;
use super::support::*;

type Model = BTreeMap<Vec<u8>, Seen>;

/// Names that sort around `.` and `..`, collide often, and are long at times.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::sample::select(vec![&b"a"[..], b"b", b"-", b".x", b"..x", b"\xff", b" ", b"A\n"])
            .prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(prop::sample::select(b"xyz!.\x01\xfe".to_vec()), 3..250)
            .prop_filter("not a marker", |name| !name.starts_with(b".wh.")),
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![
        Just(0usize),
        1..200usize,
        3900..4200usize,
        8000..8300usize,
        65_000..70_000usize,
        130_000..140_000usize,
    ];
    (size, 0..4u8, any::<u64>()).prop_map(|(size, fill, seed)| match fill {
        0 => vec![0; size],
        1 => noise(size, seed),
        2 => text(size, seed),
        _ => [text(size / 2, seed), noise(size - size / 2, seed)].concat(),
    })
}

fn seen() -> impl Strategy<Value = Seen> {
    let xattrs = prop::collection::btree_map(
        "(user|trusted|security)\\.[a-z]{1,20}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..300),
        0..4,
    );
    let ids = (0..u32::MAX, 0..u32::MAX);
    let time = (-5_000_000_000i64..5_000_000_000, 0..1_000_000_000u32);
    let kind = prop::sample::select(vec!['-', '-', '-', 'd', 'd', 'l', 'c', 'b', 'p']);
    let device = (1..4096u32, 0..1u32 << 20);
    let parts = (kind, 0..0o10000u32, ids, time, xattrs, data(), device);
    parts.prop_map(
        |(kind, permissions, (uid, gid), mtime, xattrs, data, device)| Seen {
            kind,
            permissions,
            uid,
            gid,
            mtime,
            links: if kind == 'd' { 2 } else { 1 },
            device: if matches!(kind, 'c' | 'b') {
                device
            } else {
                (0, 0)
            },
            xattrs,
            data: match kind {
                '-' => data,
                'l' => noise(data.len() % 4095 + 1, 7)
                    .iter()
                    .map(|b| b | 1)
                    .collect(),
                _ => Vec::new(),
            },
        },
    )
}

/// The model of a tree and the order in which a tar names it: directories anywhere.
fn tree() -> impl Strategy<Value = (Model, Vec<Vec<u8>>)> {
    let node = (prop::collection::vec(name(), 1..5), seen());
    prop::collection::vec(node, 0..25)
        .prop_map(|nodes| {
            let mut model = Model::new();
            for (path, seen) in nodes {
                let path = path.join(&b'/');
                let is_free = !model.contains_key(&path)
                    && !model.keys().any(|other| below(other, &path))
                    && parents(&path).all(|dir| model.get(dir).is_none_or(|dir| dir.kind == 'd'));
                if is_free {
                    model.insert(path, seen);
                }
            }
            model
        })
        .prop_flat_map(|model| {
            let order: Vec<_> = model.keys().cloned().collect();
            (Just(model), Just(order).prop_shuffle())
        })
}

fn below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.starts_with(b"/"))
}

fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..path.len())
        .filter(|i| path[*i] == b'/')
        .map(|i| &path[..i])
}

fn to_tar(model: &Model, order: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = TarBuilder::new();
    for path in order {
        let seen = &model[path];
        let flag = b"052346"[['-', 'd', 'l', 'c', 'b', 'p']
            .iter()
            .position(|k| *k == seen.kind)
            .unwrap()];
        let (seconds, nanoseconds) = seen.mtime;
        let mtime = if seconds < 0 && nanoseconds > 0 {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
        } else {
            format!("{seconds}.{nanoseconds:09}")
        };
        let mut records = vec![
            (b"mtime".to_vec(), mtime.into_bytes()),
            (b"uid".to_vec(), seen.uid.to_string().into_bytes()),
            (b"gid".to_vec(), seen.gid.to_string().into_bytes()),
        ];
        for (key, value) in &seen.xattrs {
            records.push(([&b"SCHILY.xattr."[..], key].concat(), value.clone()));
        }
        let records: Vec<(&[u8], &[u8])> = records.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        let mut fields = Fields::of(flag);
        fields.mode = seen.permissions;
        fields.device = seen.device;
        let data = match seen.kind {
            'l' => {
                fields.link.clone_from(&seen.data);
                &[][..]
            }
            _ => &seen.data[..],
        };
        tar = tar.pax(&records).entry(path, &fields, data);
    }
    tar.end()
}

/// The model with what a tar leaves unsaid: parents, the root, link counts.
fn completed(mut model: Model) -> Model {
    let implicit = Seen {
        kind: 'd',
        permissions: 0o755,
        links: 2,
        ..Seen::default()
    };
    let paths: Vec<_> = model.keys().cloned().collect();
    for path in &paths {
        for dir in parents(path) {
            model
                .entry(dir.to_vec())
                .or_insert_with(|| implicit.clone());
        }
    }
    model.insert(Vec::new(), implicit);
    let directories: Vec<_> = model
        .iter()
        .filter(|(path, seen)| seen.kind == 'd' && !path.is_empty())
        .map(|(path, _)| parents(path).last().unwrap_or_default().to_vec())
        .collect();
    for parent in directories {
        model.get_mut(&parent).unwrap().links += 1;
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_random_tree_survives_tar_and_erofs((model, order) in tree(), lz4 in any::<bool>()) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let made = make(&to_tar(&model, &order), compression);
        let (tree, expected) = (made.tree(), completed(model));
        prop_assert_eq!(tree.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (path, seen) in &expected {
            prop_assert!(tree[path] == *seen, "{}: {:?} is not {:?}", path.escape_ascii(), tree[path], seen);
        }
    }

    #[test]
    fn no_bytes_make_the_converter_panic(
        (model, order) in tree(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        fixes_checksums in any::<bool>(),
    ) {
        let mut tar = to_tar(&model, &order);
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
            let start = at / 512 * 512;
            if fixes_checksums && at % 512 < 345 {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(&tar[start..start + 512]);
                header.set_cksum();
                tar[start..start + 512].copy_from_slice(header.as_bytes());
            }
        }
        let limits = super::super::Limits { max_bytes: 16 << 20, ..Default::default() };
        // Accepted or refused: `try_make` checks the image, or that nothing is left.
        let _ = try_make(&tar, Compression::None, &limits);
    }
}
