//! What is saved of a serial console.

use serde::{Deserialize, Serialize};
use vm_superio::SerialState as Registers;

/// The registers of a 16550A and its input FIFO, which the device bounds when it is made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialState(#[serde(with = "Saved")] pub(super) Registers);

/// As they are saved, each by name: fields of another order would be another format.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Registers")]
struct Saved {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}
