//! A guest of our own that counts: 88 bytes that need no interrupt, no stack and no driver, so they
//! run wherever KVM opens, however poor it is.
//!
//! ```text
//!  100000  count in EBP and at 200000; print `T`, eight hex digits and a newline at port 3f8;
//!          wait by the time stamp counter; again.    `X` if register and memory differ
//!          at the last tick: write 1 to port 602, the reset register of engines with a serial port
//! ```
//! It is a PVH kernel (Xen, docs/misc/pvh.pandoc): 32-bit code in an ELF file with a note that says
//! where it begins.

/// Where the code is loaded, and begins.
const LOAD: u32 = 0x10_0000;

/// Cycles between two ticks, less than 2^32: about 6 ms.
const TICK_CYCLES: u32 = 1 << 24;

/// Offset of the code in the file: behind headers and note.
const CODE_OFFSET: u16 = 0x100;

/// More ticks than anyone waits for.
pub(crate) const FOREVER: u32 = u32::MAX;

/// Offset of the note.
const NOTE_OFFSET: u64 = 0xb0;

/// 32-bit code; each comment begins with the offset.
#[rustfmt::skip]
fn code(ticks: u32) -> Vec<u8> {
    let [t0, t1, t2, t3] = ticks.to_le_bytes();
    let [c0, c1, c2, c3] = TICK_CYCLES.to_le_bytes();
    vec![
        0x31, 0xed,                          //  0; xor ebp, ebp
        // next:
        0x66, 0xba, 0xf8, 0x03,              //  2; mov dx, 0x3f8
        0x45,                                //  6; inc ebp
        0xff, 0x05, 0x00, 0x00, 0x20, 0x00,  //  7; inc dword [0x200000]
        0x8b, 0x1d, 0x00, 0x00, 0x20, 0x00,  // 13; mov ebx, [0x200000]
        0xb0, 0x54,                          // 19; mov al, 'T'
        0x39, 0xeb,                          // 21; cmp ebx, ebp
        0x74, 0x02,                          // 23; je +2
        0xb0, 0x58,                          // 25; mov al, 'X'
        0xee,                                // 27; out dx, al
        0xb9, 0x08, 0x00, 0x00, 0x00,        // 28; mov ecx, 8
        // digit:
        0xc1, 0xc3, 0x04,                    // 33; rol ebx, 4
        0x88, 0xd8,                          // 36; mov al, bl
        0x24, 0x0f,                          // 38; and al, 15
        0x04, 0x30,                          // 40; add al, '0'
        0x3c, 0x39,                          // 42; cmp al, '9'
        0x76, 0x02,                          // 44; jbe +2
        0x04, 0x27,                          // 46; add al, 'a' - '9' - 1
        0xee,                                // 48; out dx, al
        0x49,                                // 49; dec ecx
        0x75, 0xed,                          // 50; jnz digit (33 - 52)
        0xb0, 0x0a,                          // 52; mov al, '\n'
        0xee,                                // 54; out dx, al
        0x0f, 0x31,                          // 55; rdtsc: writes to edx, too
        0x89, 0xc6,                          // 57; mov esi, eax
        // wait:
        0x0f, 0x31,                          // 59; rdtsc
        0x29, 0xf0,                          // 61; sub eax, esi
        0x3d, c0, c1, c2, c3,                // 63; cmp eax, TICK_CYCLES
        0x72, 0xf5,                          // 68; jb wait (59 - 70)
        0x81, 0xfd, t0, t1, t2, t3,          // 70; cmp ebp, ticks
        0x75, 0xb4,                          // 76; jne next (2 - 78)
        0x66, 0xba, 0x02, 0x06,              // 78; mov dx, 0x602
        0xb0, 0x01,                          // 82; mov al, 1
        0xee,                                // 84; out dx, al
        0xf4,                                // 85; hlt
        0xeb, 0xfd,                          // 86; jmp 85
    ]
}

/// The ELF file of one that resets itself when it has counted to `ticks`.
pub(crate) fn elf(ticks: u32) -> Vec<u8> {
    kernel(code(ticks))
}

/// The ELF file of a kernel that runs `code`.
pub(crate) fn kernel(code: Vec<u8>) -> Vec<u8> {
    let length = code.len() as u64;
    let mut file = Vec::new();
    // The header: ELF64, little-endian, EXEC, x86-64; two program headers from 0x40.
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    words(&mut file, &[2 | 62 << 16, 1]);
    longs(&mut file, &[LOAD.into(), 0x40, 0]);
    words(&mut file, &[0, 64 | 56 << 16, 2 | 64 << 16, 0]);
    // PT_LOAD, readable and executable, and PT_NOTE.
    words(&mut file, &[1, 5]);
    longs(
        &mut file,
        &[
            CODE_OFFSET.into(),
            LOAD.into(),
            LOAD.into(),
            length,
            length,
            0x1000,
        ],
    );
    words(&mut file, &[4, 4]);
    longs(&mut file, &[NOTE_OFFSET, 0, 0, 20, 20, 4]);
    assert_eq!(file.len() as u64, NOTE_OFFSET);
    // XEN_ELFNOTE_PHYS32_ENTRY, four bytes.
    words(&mut file, &[4, 4, 18]);
    file.extend_from_slice(b"Xen\0");
    words(&mut file, &[LOAD]);
    file.resize(CODE_OFFSET.into(), 0);
    file.extend(code);
    file
}

fn words(file: &mut Vec<u8>, words: &[u32]) {
    words
        .iter()
        .for_each(|word| file.extend(word.to_le_bytes()));
}

fn longs(file: &mut Vec<u8>, longs: &[u64]) {
    longs
        .iter()
        .for_each(|long| file.extend(long.to_le_bytes()));
}
