//! Figures from a server's metrics page.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::Address;

/// How long a server may take to send its page.
const TIMEOUT: Duration = Duration::from_secs(20);

/// One metrics page.
#[derive(Debug, Clone)]
pub struct Page(String);

impl Page {
    /// Reads a server's page. HTTP/1.0, so that the answer ends with the connection.
    pub async fn read(endpoint: &Address) -> anyhow::Result<Self> {
        let host = endpoint.url().trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
        let mut page = String::new();
        timeout(TIMEOUT, stream.read_to_string(&mut page)).await??;
        Ok(Self(page))
    }

    /// The values of a metric, whatever its labels, added up; 0 if there is none of that name.
    pub fn sum(&self, name: &str) -> u64 {
        let lines = self.0.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_added_up_over_their_labels_and_not_taken_for_others() {
        let page = Page("# TYPE a counter\na{family=\"x\"} 3\na{family=\"y\"} 4\na_total 100\nb 5\n".into());
        assert_eq!((page.sum("a"), page.sum("b"), page.sum("c")), (7, 5, 0));
    }
}
