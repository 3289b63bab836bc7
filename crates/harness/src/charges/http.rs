//! As much of HTTP/1.1 as is needed to know where requests and answers end, and what a request asks for.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const END_OF_HEAD: &[u8] = b"\r\n\r\n";
const END_OF_CHUNKS: &[u8] = b"0\r\n\r\n";

/// Reads one whole message; `None`: the connection was closed.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> io::Result<Option<Bytes>> {
    loop {
        if let Some(end) = end(buffer) {
            return Ok(Some(buffer.split_to(end).freeze()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Where the first message ends, if all of it is there.
fn end(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, END_OF_HEAD)? + END_OF_HEAD.len();
    if header(bytes, "transfer-encoding").is_some_and(|coding| coding == "chunked") {
        return Some(head + find(&bytes[head..], END_OF_CHUNKS)? + END_OF_CHUNKS.len());
    }
    let length: usize = header(bytes, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    (bytes.len() >= head + length).then_some(head + length)
}

/// A header of a message whose head is there.
pub(super) fn header(message: &[u8], name: &str) -> Option<String> {
    let head = &message[..find(message, END_OF_HEAD)?];
    String::from_utf8_lossy(head).lines().find_map(|line| {
        let (said, value) = line.split_once(':')?;
        said.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// The body of a whole message.
pub(super) fn body(message: &Bytes) -> Bytes {
    find(message, END_OF_HEAD).map_or_else(Bytes::new, |head| message.slice(head + END_OF_HEAD.len()..))
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Method and path of a request, ids left out.
pub(super) fn asked(request: &[u8]) -> Arc<str> {
    let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default());
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let part = |part| if is_id(part) { "{id}" } else { part };
    format!("{method} {}", path.split('/').map(part).collect::<Vec<_>>().join("/")).into()
}

/// Whether a part of a path is an id, such as `ii_Lk3bcYQuFbGMHt`, and no word, such as `add_lines`.
fn is_id(part: &str) -> bool {
    part.split_once('_').is_some_and(|(_, name)| name.len() >= 14 && !name.contains('_'))
}

/// Sends a request that was kept, and waits for its answer, whatever that is.
pub(super) async fn deliver(to: SocketAddr, request: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(request).await?;
    read(&mut stream, &mut BytesMut::new()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_with_its_body() {
        for message in [
            &b"GET /v1/invoiceitems?customer=cus_1 HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            b"POST /v1/invoiceitems HTTP/1.1\r\nContent-Length: 3\r\n\r\na=b",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n",
        ] {
            for length in 0..message.len() {
                assert_eq!(end(&message[..length]), None);
            }
            assert_eq!(end(&[message, b"more"].concat()), Some(message.len()));
        }
        assert_eq!(&*body(&Bytes::from_static(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\na=b")), b"a=b");
        assert_eq!(&*asked(b"GET /v1/invoiceitems?customer=cus_1 HTTP/1.1\r\n"), "GET /v1/invoiceitems");
        assert_eq!(
            &*asked(b"POST /v1/invoices/in_sOWJLrRxllAWTq/finalize HTTP/1.1\r\n"),
            "POST /v1/invoices/{id}/finalize"
        );
    }
}
