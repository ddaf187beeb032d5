//! Addresses of processes as operators write them: etcd's URL flags.

use thiserror::Error;

/// Why a text is no address.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// No `http://` in front.
    #[error("{0:?} must start with http:// (https is not supported yet), for example http://127.0.0.1:2379")]
    Scheme(String),
    /// No `:port` at the end, or something after it.
    #[error("{0:?} must be http://HOST:PORT with nothing after the port, for example http://127.0.0.1:2379")]
    Port(String),
}

/// Reads `http://host:port` and returns `host:port`.
pub fn host_port(url: &str) -> Result<String, AddressError> {
    let rest = url.strip_prefix("http://").ok_or_else(|| AddressError::Scheme(url.to_owned()))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| AddressError::Port(url.to_owned()))?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(AddressError::Port(url.to_owned()));
    }
    Ok(rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_and_names_what_is_wrong() {
        assert_eq!(host_port("http://127.0.0.1:2379"), Ok("127.0.0.1:2379".into()));
        assert_eq!(host_port("http://node-1:2380/"), Ok("node-1:2380".into()));
        assert!(matches!(host_port("127.0.0.1:2379"), Err(AddressError::Scheme(_))));
        assert!(matches!(host_port("http://127.0.0.1"), Err(AddressError::Port(_))));
        assert!(matches!(host_port("http://a:99999"), Err(AddressError::Port(_))));
        assert!(matches!(host_port("http://:1"), Err(AddressError::Port(_))));
    }
}
