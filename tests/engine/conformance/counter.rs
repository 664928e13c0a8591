//! Guests of our own for who measures: 33 bytes that touch memory, and then count in memory alone, without
//! any device, so that any engine runs them; and some that do nothing at all.

use super::payload;

/// Where it counts, in 32 bits.
pub(crate) const COUNT: u64 = 0x20_0000;

/// From where on it touches memory.
const TOUCHED: u32 = 0x40_0000;

/// The ELF file of one that writes to each page of `touched_bytes`, and then counts at [`COUNT`] as
/// fast as it can.
pub(crate) fn elf(touched_bytes: u32) -> Vec<u8> {
    let [e0, e1, e2, e3] = (TOUCHED + touched_bytes).to_le_bytes();
    let [t0, t1, t2, t3] = TOUCHED.to_le_bytes();
    #[rustfmt::skip]
    let code = vec![
        0xbf, t0, t1, t2, t3,                //  0; mov edi, TOUCHED
        // touch:
        0x81, 0xff, e0, e1, e2, e3,          //  5; cmp edi, TOUCHED + touched_bytes
        0x73, 0x0a,                          // 11; jae count (23 - 13)
        0x89, 0x3f,                          // 13; mov [edi], edi
        0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,  // 15; add edi, 4096
        0xeb, 0xee,                          // 21; jmp touch (5 - 23)
        // count:
        0xff, 0x05, 0x00, 0x00, 0x20, 0x00,  // 23; inc dword [COUNT]
        0xf3, 0x90,                          // 29; pause
        0xeb, 0xf6,                          // 31; jmp count (23 - 33)
    ];
    payload::kernel(code)
}

/// The ELF file of one that prints `T` and then halts for good: a guest that costs no processor anything.
pub(crate) fn idle() -> Vec<u8> {
    payload::kernel(vec![
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, 0x54, // mov al, 'T'
        0xee, // out dx, al
        0xf4, // hlt: interrupts are off, as a PVH kernel finds them
        0xeb, 0xfd, // jmp back
    ])
}
