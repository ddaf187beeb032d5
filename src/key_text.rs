//! Keys as text: printable ASCII stands for itself, every other byte is `\xNN`, a backslash is `\\`.

use bytes::Bytes;
use thiserror::Error;

/// Why a text is no key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeyTextError {
    /// Nothing at all.
    #[error("a key cannot be empty")]
    Empty,
    /// A backslash that starts nothing known.
    #[error("{0:?} has a backslash that is neither \\\\ nor \\xNN with two hexadecimal digits")]
    Escape(String),
}

/// Reads a key.
pub fn parse(text: &str) -> Result<Bytes, KeyTextError> {
    let wrong = || KeyTextError::Escape(text.to_owned());
    let mut key = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'\\', [b'\\', after @ ..]) => {
                key.push(b'\\');
                after
            }
            (b'\\', [b'x', high, low, after @ ..]) => {
                key.push(hex(*high).ok_or_else(wrong)? << 4 | hex(*low).ok_or_else(wrong)?);
                after
            }
            (b'\\', _) => return Err(wrong()),
            (byte, after) => {
                key.push(*byte);
                after
            }
        };
    }
    if key.is_empty() { Err(KeyTextError::Empty) } else { Ok(key.into()) }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Writes a key so that [`parse`] reads it back.
pub fn escape(key: &[u8]) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key {
        match byte {
            b'\\' => text.push_str("\\\\"),
            0x20..=0x7e => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for key in [&b"/registry/pods/a"[..], b"\0", b"a\\b", b"\xff\xfe", "grün".as_bytes(), b"\\x41"] {
            assert_eq!(parse(&escape(key)).as_deref(), Ok(key));
        }
        assert_eq!(escape(b"a\0\\"), "a\\x00\\\\");
    }

    #[test]
    fn wrong_escapes_are_refused() {
        for text in ["\\", "a\\", "\\x", "\\x4", "\\xg0", "\\n"] {
            assert_eq!(parse(text), Err(KeyTextError::Escape(text.into())), "{text}");
        }
        assert_eq!(parse(""), Err(KeyTextError::Empty));
    }
}
