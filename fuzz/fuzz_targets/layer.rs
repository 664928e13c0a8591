//! A layer; the EROFS image that it becomes is read by another implementation.
#![no_main]

use std::io::Read as _;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(image) = cocoon::image::fuzzing::layer(data) {
        read(&image);
    }
});

/// Reads all of an image.
fn read(image: &[u8]) {
    let files = EroFS::new(SliceImage::new(image)).expect("an image");
    for entry in files.walk_dir("/").expect("a root") {
        let entry = entry.expect("an entry");
        files.xattrs_inode(entry.inode).expect("attributes");
        match entry.inode.file_type() {
            kind if kind.is_file() => {
                let mut content = Vec::new();
                let mut file = files.open_inode_file(entry.inode).expect("a file");
                file.read_to_end(&mut content).expect("its content");
            }
            kind if kind.is_symlink() => drop(files.read_link_inode(entry.inode).expect("a link")),
            _ => {}
        }
    }
}
