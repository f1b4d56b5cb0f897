//! A target for fuzzing: arbitrary bytes from a broker.

use amq_protocol::frame::{AMQPFrame, parse_frame};

use super::frames::FrameFilter;

const LARGEST: u64 = 1000;
const FRAME: usize = 128 << 10;
const HEAD: usize = 7;
const HEADER_FRAME: u8 = 2;
const FRAME_END: u8 = 0xce;

/// Octets of a content header before its properties.
const CONTENT: usize = 14;

/// The method by which a broker sets the largest frame.
const TUNE: [u8; 4] = [0, 10, 0, 30];

/// What passes when the bytes arrive in pieces of this size.
fn filtered(stream: &[u8], piece: usize) -> Vec<u8> {
    let mut filter = FrameFilter::new(LARGEST, FRAME);
    let mut out = Vec::new();
    for piece in stream.chunks(piece.max(1)) {
        filter.push(piece, &mut out);
    }
    out
}

/// The sizes of the pieces in which bytes arrive do not matter, the library reads every content header that
/// passes, and output passes a second time unchanged. (But not if the broker wants small frames: the header
/// that names the defects then makes others too large.)
pub(in crate::broker) fn frames(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let out = filtered(stream, stream.len());
    assert_eq!(filtered(stream, usize::from(*piece)), out);
    if !stream.windows(TUNE.len()).any(|window| window == TUNE) {
        assert_eq!(filtered(&out, out.len()), out);
    }
    let mut rest = &out[..];
    while let [kind @ (1..=3 | 8), _, _, a, b, c, d, ..] = *rest {
        let whole = HEAD + u32::from_be_bytes([a, b, c, d]) as usize + 1;
        let Some((frame, later)) = rest.split_at_checked(whole) else { return };
        if frame[whole - 1] != FRAME_END {
            return;
        }
        let basic = frame.get(HEAD..HEAD + 2) == Some(&[0, 60]) && whole > HEAD + CONTENT;
        if kind == HEADER_FRAME && basic {
            let read = parse_frame(frame);
            assert!(matches!(read, Ok((_, AMQPFrame::Header(..)))), "{read:?}");
        }
        rest = later;
    }
}
