//! A server of one repository on this machine, for tests.

use super::{Hub, Kind};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;

/// The only commit of each repository of [`serve`].
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Returns a hub with its own cache.
pub(crate) fn hub(cache: &Path, endpoint: &str, is_offline: bool) -> Hub {
    let endpoint = endpoint.to_owned();
    Hub { cache: cache.to_owned(), endpoint, token: None, is_offline }
}

/// Serves a repository `owner/name` of these files for as long as the test runs. Returns its address.
pub(crate) fn serve(kind: Kind, files: &'static [(&'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            let headers: Vec<String> =
                lines.map_while(|l| l.ok().filter(|l| !l.is_empty())).collect();
            let path = request.split(' ').nth(1).unwrap();
            stream.write_all(respond(kind, files, path, &headers).as_bytes()).unwrap();
        }
    });
    address
}

fn respond(kind: Kind, files: &[(&str, &str)], path: &str, headers: &[String]) -> String {
    let reply = |status: &str, more: &str, body: &str| {
        let len = body.len();
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len}\r\n{more}\r\n{body}"
        )
    };
    let (api, place) = match kind {
        Kind::Model => ("models", ""),
        Kind::Dataset => ("datasets", "/datasets"),
    };
    if path == format!("/api/{api}/owner/name/revision/main") {
        let siblings: Vec<String> =
            files.iter().map(|(file, _)| format!("{{\"rfilename\": \"{file}\"}}")).collect();
        let siblings = siblings.join(",");
        let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{siblings}]}}");
        return reply("200 OK", "Content-Type: application/json\r\n", &body);
    }
    let file = path.strip_prefix(&format!("{place}/owner/name/resolve/{COMMIT}/"));
    let Some((file, body)) = files.iter().find(|(name, _)| Some(*name) == file) else {
        return reply("404 Not Found", "", "");
    };
    let range = headers.iter().find_map(|header| {
        let (key, value) = header.split_once(": ")?;
        key.eq_ignore_ascii_case("range").then(|| value.trim_start_matches("bytes="))
    });
    let (first, last) = range.unwrap().split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let end = last.parse::<usize>().map_or(body.len(), |last| body.len().min(last + 1));
    let etag = file.replace('/', "-");
    let more = format!(
        "ETag: \"etag-{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {first}-{}/{}\r\n",
        end - 1,
        body.len()
    );
    reply("206 Partial Content", &more, &body[first..end])
}
