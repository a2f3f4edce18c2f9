//! A failure in ssh's own words, for an ssh that sends its ProxyCommand's standard error to nowhere, as with ControlPersist and Ansible: the
//! identification of a server, and a disconnect message, which OpenSSH prints. It can be said before the device's first byte only.
//!
//! ```text
//! Received disconnect from UNKNOWN port 65535:7: no stream to lamp-1/ssh: the device is not connected (device_offline); next: …
//! ```

use std::time::Duration;

use moorline_proto::failure::Failure as Report;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::stdio::{OutputDone, Stdio};

/// The identification of RFC 4253, section 4.2.
const IDENTIFICATION: &str = concat!("SSH-2.0-moorline_", env!("CARGO_PKG_VERSION"), "\r\n");
/// `SSH_MSG_DISCONNECT` (RFC 4253, section 11.1).
const DISCONNECT: u8 = 1;
/// `SSH_DISCONNECT_SERVICE_NOT_AVAILABLE`.
const SERVICE_NOT_AVAILABLE: u32 = 7;
/// What OpenSSH prints of a description (`packet.c`).
const DESCRIPTION_BYTES: usize = 400;
/// Packets are a multiple of this before a cipher is agreed on (RFC 4253, section 6).
const BLOCK_BYTES: usize = 8;
/// The least padding.
const MIN_PADDING: usize = 4;
/// For ssh to read the message and to end, which closes standard input. It prints nothing if its own writes fail before.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const DISCARD_BYTES: usize = 4 * 1024;

/// Tells ssh why there is no stream, and waits until it has taken that.
pub(crate) async fn send((mut stdio, written): (Stdio, OutputDone), report: &Report) {
    let sent = async {
        stdio.write_all(&message(&description(report))).await?;
        while stdio.read(&mut [0; DISCARD_BYTES]).await? > 0 {}
        // Standard input may have ended before the message was written.
        drop(stdio);
        written.wait().await
    };
    // Whoever does not take it is no ssh, or has ended.
    drop(timeout(READ_TIMEOUT, sent).await);
}

/// What happened, why, and what to do next in one line of ASCII, since ssh escapes everything else. The reasons are left out if there is no room.
fn description(report: &Report) -> String {
    let what = report.what().to_owned();
    let causes = report.causes().iter().map(|cause| format!("; because: {cause}")).collect::<String>();
    let next = report.advice().map(|advice| format!("; next: {advice}")).unwrap_or_default();
    let has_room = what.len() + causes.len() + next.len() <= DESCRIPTION_BYTES;
    let text = if has_room { what + &causes + &next } else { what + &next };
    let ascii = |character: char| if character.is_ascii_graphic() || character == ' ' { character } else { '?' };
    text.chars().map(ascii).take(DESCRIPTION_BYTES).collect()
}

/// What a server sends to refuse a connection.
fn message(description: &str) -> Vec<u8> {
    let mut payload = vec![DISCONNECT];
    payload.extend(SERVICE_NOT_AVAILABLE.to_be_bytes());
    let no_language = "";
    for text in [description, no_language] {
        payload.extend(length(text.len()));
        payload.extend(text.as_bytes());
    }
    [IDENTIFICATION.as_bytes(), &packet(&payload)].concat()
}

/// A packet without cipher and MAC: length, length of the padding, payload, padding.
fn packet(payload: &[u8]) -> Vec<u8> {
    let unpadded = size_of::<u32>() + 1 + payload.len();
    let padding = MIN_PADDING + (BLOCK_BYTES - (unpadded + MIN_PADDING) % BLOCK_BYTES) % BLOCK_BYTES;
    let mut packet = length(1 + payload.len() + padding).to_vec();
    packet.push(u8::try_from(padding).unwrap_or(u8::MAX)); // at most 11
    packet.extend(payload);
    packet.resize(unpadded + padding, 0);
    packet
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes() // a description is far smaller
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_whole_blocks_with_at_least_four_bytes_of_padding() {
        for size in 0..64 {
            let packet = packet(&vec![7; size]);
            let padding = usize::from(packet[4]);
            assert_eq!(packet.len() % BLOCK_BYTES, 0, "{size}");
            assert_eq!(packet[..4], length(packet.len() - 4), "{size}");
            assert!((4..12).contains(&padding) && packet.len() == 5 + size + padding, "{size}: {padding}");
        }
        let message = message("gone");
        let packet = message.strip_prefix(IDENTIFICATION.as_bytes()).unwrap();
        assert_eq!(packet[5..22], *b"\x01\0\0\0\x07\0\0\0\x04gone\0\0\0\0");
    }

    #[test]
    fn the_description_is_short_and_one_line_of_ascii() {
        let report = Report::new("no stream").because("the device says: f\u{fc}r\nnow").next("wait");
        assert_eq!(description(&report), "no stream; because: the device says: f?r?now; next: wait");
        let long = Report::new("no stream").because("x".repeat(400)).next("wait");
        assert_eq!(description(&long), "no stream; next: wait");
        assert_eq!(description(&Report::new("\u{fc}".repeat(500))).len(), DESCRIPTION_BYTES);
    }
}
