//! Lets in clients whose `:authority` is no authority.
//!
//! etcd's client before 3.5 dials one endpoint (`endpoint status`, `defrag`, ...) with the whole URL as `:authority`:
//! `http://127.0.0.1:2379`; 3.5.0 sends `#initially=[...]`. Go's server never looks at it. Our HTTP/2 library resets such a
//! request with PROTOCOL_ERROR before anybody is asked, so the bytes are mended on their way in:
//!
//! 1. A connection that does not begin with HTTP/2's preface passes through.
//! 2. The first HEADERS frame decides: if its `:authority` is none, or a good one, the connection passes through from then
//!    on, and costs nothing more.
//! 3. Otherwise in this HEADERS frame and all later ones a bad literal is replaced by one of the same length, in which
//!    every character that no host name has is a dash. The same length, because both sides count it into the size of
//!    their header table; later requests name the literal by its place there and need no mending.
//!
//! Only literals are read, which takes no knowledge of the header table. What cannot be read stays as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

mod hpack;

/// What an HTTP/2 client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes in front of every frame's payload.
const FRAME_HEAD: usize = 9;
/// Largest payload that clients may send: HTTP/2's default, which our server does not raise.
const PAYLOAD_MAX: usize = 16_384;
/// Frame type HEADERS and its flags.
const HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// Bytes read at once while a connection is looked at.
const CHUNK: usize = 8192;

/// Where the look at a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing seen but a part of the preface.
    Preface,
    /// Before the first HEADERS frame.
    Undecided,
    /// The first `:authority` was bad.
    Mending,
    /// Nothing is looked at any more.
    Through,
}

/// What a HEADERS frame holds.
enum Verdict {
    /// No literal `:authority`, or a good one.
    Fine,
    /// A bad one; this is the frame as it should be.
    Mended(Vec<u8>),
}

/// The bytes of a connection, mended.
#[derive(Debug)]
struct Mender {
    stage: Stage,
    /// Came in, not looked at yet.
    pending: BytesMut,
    /// Bytes of the present frame that pass without a look.
    passing: usize,
    /// May go on.
    ready: BytesMut,
}

impl Mender {
    fn new() -> Self {
        Self { stage: Stage::Preface, pending: BytesMut::new(), passing: 0, ready: BytesMut::new() }
    }

    /// Moves everything that can be decided from `pending` to `ready`.
    fn advance(&mut self) {
        if self.stage == Stage::Preface {
            let seen = self.pending.len().min(PREFACE.len());
            if self.pending[..seen] != PREFACE[..seen] {
                return self.let_through();
            }
            if seen < PREFACE.len() {
                return;
            }
            self.pass(PREFACE.len());
            self.stage = Stage::Undecided;
        }
        while self.stage != Stage::Through && self.step() {}
    }

    /// One frame, or a part of one. False: more bytes are needed.
    fn step(&mut self) -> bool {
        if self.passing > 0 {
            let now = self.passing.min(self.pending.len());
            self.pass(now);
            self.passing -= now;
            return now > 0;
        }
        let Some(head) = self.pending.first_chunk::<FRAME_HEAD>() else { return false };
        let whole = FRAME_HEAD + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if head[3] != HEADERS {
            self.passing = whole;
            return true;
        }
        if whole > FRAME_HEAD + PAYLOAD_MAX {
            // The server will refuse the frame.
            self.let_through();
            return false;
        }
        if self.pending.len() < whole {
            return false;
        }
        match judge(&self.pending[..whole]) {
            Verdict::Fine if self.stage == Stage::Undecided => {
                self.let_through();
                return false;
            }
            Verdict::Fine => self.pass(whole),
            Verdict::Mended(frame) => {
                self.stage = Stage::Mending;
                self.ready.extend_from_slice(&frame);
                self.pending.advance(whole);
            }
        }
        true
    }

    fn pass(&mut self, bytes: usize) {
        let passed = self.pending.split_to(bytes);
        self.ready.unsplit(passed);
    }

    fn let_through(&mut self) {
        self.stage = Stage::Through;
        self.pass(self.pending.len());
    }
}

/// Looks at one whole HEADERS frame.
fn judge(frame: &[u8]) -> Verdict {
    let Some((from, to)) = block(frame) else { return Verdict::Fine };
    let Some(literal) = hpack::authority(&frame[from..to]) else { return Verdict::Fine };
    if literal.value.is_empty() || Authority::try_from(&literal.value[..]).is_ok() {
        return Verdict::Fine;
    }
    let value: Vec<u8> = literal.value.iter().map(|byte| if is_host(*byte) { *byte } else { b'-' }).collect();
    let mut mended = frame[..from + literal.at.start].to_vec();
    hpack::put_text(&mut mended, &value);
    mended.extend_from_slice(&frame[from + literal.at.end..]);
    let payload = mended.len() - FRAME_HEAD;
    if payload > PAYLOAD_MAX {
        return Verdict::Fine;
    }
    mended[..3].copy_from_slice(&(payload as u32).to_be_bytes()[1..]);
    Verdict::Mended(mended)
}

fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')
}

/// Where the header block of a HEADERS frame lies.
fn block(frame: &[u8]) -> Option<(usize, usize)> {
    let flags = frame[4];
    let (mut from, mut to) = (FRAME_HEAD, frame.len());
    if flags & FLAG_PADDED != 0 {
        to = to.checked_sub(usize::from(*frame.get(from)?))?;
        from += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        from += 5;
    }
    (from <= to).then_some((from, to))
}

/// A connection whose requests are mended as they come in.
#[derive(Debug)]
pub struct MendAuthority<S> {
    stream: S,
    mender: Mender,
}

impl<S> MendAuthority<S> {
    /// Mends what `stream` brings in.
    pub fn new(stream: S) -> Self {
        Self { stream, mender: Mender::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MendAuthority<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.mender.ready.is_empty() {
                let now = this.mender.ready.len().min(buf.remaining());
                buf.put_slice(&this.mender.ready.split_to(now));
                return Poll::Ready(Ok(()));
            }
            if this.mender.stage == Stage::Through {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            let mut chunk = [0; CHUNK];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // The end: what came last is nobody's business but the server's.
                this.mender.let_through();
            } else {
                this.mender.pending.extend_from_slice(read.filled());
                this.mender.advance();
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MendAuthority<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
