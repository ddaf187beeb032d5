//! Connections byte by byte, and whole ones through the real server library.

use std::convert::Infallible;

use http::{Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// A frame without priority and padding.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Headers of a GET of `/` with `authority`, kept for later requests, not Huffman coded.
fn headers(stream: u8, authority: &[u8]) -> Vec<u8> {
    let mut block = vec![0x82, 0x84, 0x86, 0x41];
    hpack::put_text(&mut block, authority);
    frame(HEADERS, 0x5, stream, &block)
}

/// What comes out if `input` comes in pieces of `size` bytes.
fn mended(input: &[u8], size: usize) -> (Vec<u8>, Stage) {
    let mut mender = Mender::new();
    for piece in input.chunks(size) {
        if mender.stage == Stage::Through {
            mender.ready.extend_from_slice(piece);
        } else {
            mender.pending.extend_from_slice(piece);
            mender.advance();
        }
    }
    (mender.ready.to_vec(), mender.stage)
}

#[test]
fn a_bad_authority_is_mended_however_the_bytes_are_cut() {
    let settings = frame(4, 0, 0, &[]);
    let data = frame(0, 0, 1, &[7; 3000]);
    let bad = headers(1, b"http://127.0.0.1:2379");
    let second = frame(HEADERS, 0x5, 3, &[0x82, 0x84, 0x86, 0xbe]);
    let input = [&PREFACE[..], &settings, &bad, &data, &second, &headers(5, b"#initially=[a;b]")].concat();
    let good = headers(1, b"http---127.0.0.1-2379");
    let expect = [&PREFACE[..], &settings, &good, &data, &second, &headers(5, b"-initially--a-b-")].concat();
    for size in [1, 2, 7, 100, input.len()] {
        assert_eq!(mended(&input, size), (expect.clone(), Stage::Mending), "pieces of {size}");
    }
}

#[test]
fn a_good_connection_passes_through_untouched() {
    let rest = headers(3, b"not/looked/at/any/more");
    for first in [headers(1, b"127.0.0.1:2379"), headers(1, b""), frame(HEADERS, 0x5, 1, &[0x82, 0x84, 0x86])] {
        let input = [&PREFACE[..], &frame(4, 0, 0, &[]), &first, &rest].concat();
        assert_eq!(mended(&input, 5), (input.clone(), Stage::Through));
    }
    let http1 = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(mended(http1, 3), (http1.to_vec(), Stage::Through));
    assert_eq!(mended(&PREFACE[..10], 10), (Vec::new(), Stage::Preface));
}

#[test]
fn padding_and_priority_are_kept() {
    let mut block = vec![0x82, 0x84, 0x86, 0x41];
    hpack::put_text(&mut block, b"a/b");
    let payload = |block: &[u8]| [&[2, 0, 0, 0, 0, 9][..], block, &[0, 0]].concat();
    let flags = 0x5 | FLAG_PADDED | FLAG_PRIORITY;
    let input = frame(HEADERS, flags, 1, &payload(&block));
    let Verdict::Mended(out) = judge(&input) else { panic!("it is bad") };
    let at = block.len() - 2;
    block[at] = b'-';
    assert_eq!(out, frame(HEADERS, flags, 1, &payload(&block)));
}

#[test]
fn damaged_frames_are_left_to_the_server() {
    for payload in [&[][..], &[0x41], &[0x41, 0x85, 0xff], &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff], &[0xff; 9]] {
        for flags in [0x5, 0x5 | FLAG_PADDED, 0x5 | FLAG_PRIORITY | FLAG_PADDED] {
            assert!(matches!(judge(&frame(HEADERS, flags, 1, payload)), Verdict::Fine), "{payload:?} {flags}");
        }
    }
    let huge = [&PREFACE[..], &[0xff, 0xff, 0xff, HEADERS, 5, 0, 0, 0, 1], &[0; 50]].concat();
    assert_eq!(mended(&huge, 9), (huge.clone(), Stage::Through));
}

#[tokio::test]
async fn the_server_library_answers_a_mended_request_and_would_reset_it_otherwise() {
    for (mend, kind_of_answer) in [(true, HEADERS), (false, 3)] {
        let (mut client, server) = duplex(1 << 16);
        let service = service_fn(|_: Request<hyper::body::Incoming>| async {
            Ok::<_, Infallible>(Response::new(tonic::body::Body::empty()))
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let serving = match mend {
            true => tokio::spawn(builder.serve_connection(TokioIo::new(MendAuthority::new(server)), service)),
            false => tokio::spawn(builder.serve_connection(TokioIo::new(server), service)),
        };
        let hello = [&PREFACE[..], &frame(4, 0, 0, &[]), &headers(1, b"http://127.0.0.1:2379")].concat();
        client.write_all(&hello).await.unwrap();
        // Frames of the connection itself (settings, windows) come first.
        loop {
            let mut head = [0; FRAME_HEAD];
            client.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            client.read_exact(&mut payload).await.unwrap();
            if head[8] == 1 {
                assert_eq!(head[3], kind_of_answer, "mended: {mend}");
                break;
            }
        }
        serving.abort();
    }
}
