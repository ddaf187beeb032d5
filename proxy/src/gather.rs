//! One write to the socket for many answers.
//!
//! HTTP/2 writes each message of some size by itself, with its header before it: an answer may be a system call and a packet
//! of its own. Here everything waits for the flush, which comes when the connection has said all that it has to say in its turn.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes held back at most; more than that is worth a write of its own.
const HELD_MAX: usize = 16 << 10;
/// A buffer larger than this is given back when it is empty: many connections rest.
const KEPT_MAX: usize = 4 << 10;

/// A stream that gathers what is written to it until it is flushed.
#[derive(Debug)]
pub struct Gather<S> {
    stream: S,
    held: Vec<u8>,
    /// How many of the held bytes are written.
    written: usize,
}

impl<S> Gather<S> {
    /// Gathers what is written to `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, held: Vec::new(), written: 0 }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes everything that is held.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let wrote = ready!(Pin::new(&mut self.stream).poll_write(context, &self.held[self.written..]))?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += wrote;
        }
        self.written = 0;
        self.held.clear();
        if self.held.capacity() > KEPT_MAX {
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Whether `bytes` more may be held.
    fn has_room(&self, bytes: usize) -> bool {
        self.held.len() + bytes <= HELD_MAX
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.has_room(bytes.len()) {
            ready!(self.poll_drain(context))?;
        }
        if bytes.len() > HELD_MAX {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if !self.has_room(bytes) {
            ready!(self.poll_drain(context))?;
        }
        if bytes > HELD_MAX {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        parts.iter().for_each(|part| self.held.extend_from_slice(part));
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Notes each write; takes `most` bytes at once, and nothing every other time if it `balks`.
    struct Socket {
        writes: Vec<Vec<u8>>,
        most: usize,
        balks: bool,
        ready: bool,
    }

    impl AsyncWrite for Socket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.ready = !self.ready;
            if self.balks && self.ready {
                return Poll::Pending;
            }
            let taken = bytes.len().min(self.most);
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gather(most: usize, balks: bool) -> Gather<Socket> {
        Gather::new(Socket { writes: Vec::new(), most, balks, ready: false })
    }

    fn write(gather: &mut Gather<Socket>, bytes: &[u8]) -> Poll<usize> {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(gather).poll_write(&mut context, bytes).map(|wrote| wrote.expect("written"))
    }

    fn flush(gather: &mut Gather<Socket>) -> Poll<()> {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(gather).poll_flush(&mut context).map(|flushed| flushed.expect("flushed"))
    }

    #[test]
    fn what_is_written_before_a_flush_leaves_in_one_write() {
        let mut gather = gather(usize::MAX, false);
        assert_eq!(flush(&mut gather), Poll::Ready(()));
        for answer in [&b"one "[..], b"two "] {
            assert_eq!(write(&mut gather, answer), Poll::Ready(4));
        }
        assert!(gather.stream.writes.is_empty());
        let mut context = Context::from_waker(Waker::noop());
        let parts = [io::IoSlice::new(b"thr"), io::IoSlice::new(b"ee")];
        let wrote = Pin::new(&mut gather).poll_write_vectored(&mut context, &parts);
        assert!(matches!(wrote, Poll::Ready(Ok(5))));
        assert_eq!(flush(&mut gather), Poll::Ready(()));
        assert_eq!(gather.stream.writes, [b"one two three"]);
        assert_eq!(write(&mut gather, b"four"), Poll::Ready(4));
        assert_eq!(flush(&mut gather), Poll::Ready(()));
        assert_eq!(gather.stream.writes[1..], [b"four"]);
    }

    #[test]
    fn much_is_not_held_back_and_order_stays() {
        let mut gather = gather(usize::MAX, false);
        let (large, most) = (vec![b'L'; HELD_MAX + 1], vec![b'm'; HELD_MAX]);
        assert_eq!(write(&mut gather, b"before"), Poll::Ready(6));
        assert_eq!(write(&mut gather, &large), Poll::Ready(large.len()));
        assert_eq!(gather.stream.writes, [b"before".to_vec(), large]);
        assert_eq!(write(&mut gather, &most), Poll::Ready(most.len()));
        assert_eq!(write(&mut gather, b"after"), Poll::Ready(5));
        assert_eq!(gather.stream.writes.len(), 3);
        assert!(gather.held.capacity() <= KEPT_MAX, "what much needed is given back");
        assert_eq!(flush(&mut gather), Poll::Ready(()));
        assert_eq!(gather.stream.writes[2..], [most, b"after".to_vec()]);
    }

    #[test]
    fn a_socket_that_takes_little_gets_everything_once() {
        let mut gather = gather(3, true);
        assert_eq!(write(&mut gather, b"0123456789"), Poll::Ready(10));
        let mut polls = 0;
        while flush(&mut gather).is_pending() {
            polls += 1;
            if polls == 3 {
                // More comes while the socket is full.
                assert_eq!(write(&mut gather, b"abc"), Poll::Ready(3));
            }
            assert!(polls < 20);
        }
        assert_eq!(gather.stream.writes.concat(), b"0123456789abc");
    }
}
