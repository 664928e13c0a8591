//! What is saved of a serial console.

use serde::{Deserialize, Serialize};
use vm_superio::SerialState as Registers;

/// The registers of a 16550A and its input FIFO, which the device bounds when it is made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialState {
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

impl From<&Registers> for SerialState {
    fn from(from: &Registers) -> Self {
        Self {
            baud_divisor_low: from.baud_divisor_low,
            baud_divisor_high: from.baud_divisor_high,
            interrupt_enable: from.interrupt_enable,
            interrupt_identification: from.interrupt_identification,
            line_control: from.line_control,
            line_status: from.line_status,
            modem_control: from.modem_control,
            modem_status: from.modem_status,
            scratch: from.scratch,
            in_buffer: from.in_buffer.clone(),
        }
    }
}

impl From<&SerialState> for Registers {
    fn from(from: &SerialState) -> Self {
        Self {
            baud_divisor_low: from.baud_divisor_low,
            baud_divisor_high: from.baud_divisor_high,
            interrupt_enable: from.interrupt_enable,
            interrupt_identification: from.interrupt_identification,
            line_control: from.line_control,
            line_status: from.line_status,
            modem_control: from.modem_control,
            modem_status: from.modem_status,
            scratch: from.scratch,
            in_buffer: from.in_buffer.clone(),
        }
    }
}

#[cfg(test)]
impl SerialState {
    pub(super) fn input(&self) -> &[u8] {
        &self.in_buffer
    }

    pub(super) fn with_input(self, in_buffer: Vec<u8>) -> Self {
        Self { in_buffer, ..self }
    }
}
