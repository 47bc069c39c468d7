//! Datasets from a hub that answers as Hugging Face's does, on this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const FILES: [(&str, &str); 3] = [
    (
        "data/train-00000-of-00001.jsonl",
        "{\"input_ids\": [1, 2, 3], \"prompt_len\": 1}\n{\"input_ids\": [4, 5], \"prompt_len\": 0}\n",
    ),
    ("data/test-00000-of-00001.jsonl", "{\"input_ids\": [6], \"prompt_len\": 0}\n"),
    ("README.md", "# no data"),
];

/// Serves the dataset `owner/set`; every request's path is noted.
fn serve() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let noted = noted.clone();
            std::thread::spawn(move || answer(stream, &noted));
        }
    });
    (address, asked)
}

fn answer(mut stream: TcpStream, noted: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).map(|l| l.to_lowercase()).collect();
    noted.lock().unwrap().push(path.clone());
    let file = FILES.iter().find(|(name, _)| path == format!("/datasets/owner/set/resolve/main/{name}"));
    let reply = match (path.as_str(), file) {
        ("/api/datasets/owner/set" | "/api/datasets/owner/set/revision/main", _) => {
            let siblings: Vec<_> = FILES.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "sha": "c0ffee", "siblings": siblings }).to_string();
            format!("200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        }
        (_, Some((name, body))) => {
            let range = headers.iter().find_map(|h| h.strip_prefix("range: bytes=")).unwrap_or("0-");
            let (from, to) = range.split_once('-').unwrap();
            let (from, last) = (from.parse::<usize>().unwrap(), to.parse().unwrap_or(body.len() - 1));
            format!(
                "206 Partial Content\r\netag: \"{}\"\r\nx-repo-commit: c0ffee\r\ncontent-range: bytes {from}-{last}/{}\r\n\
                 content-length: {}\r\n\r\n{}",
                name.len(),
                body.len(),
                last + 1 - from,
                &body[from..=last]
            )
        }
        _ => "404 Not Found\r\ncontent-length: 0\r\n\r\n".into(),
    };
    let _ = stream.write_all(format!("HTTP/1.1 {}", reply.replacen("\r\n", "\r\nconnection: close\r\n", 1)).as_bytes());
}

/// `weftc data DATA` with a cache of its own.
fn data(name: &str, hub: &str, home: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weftc"));
    command.args(["data", name]).env("HF_ENDPOINT", hub).env("HF_HOME", home).env_remove("HF_HUB_CACHE");
    command.env_remove("HF_TOKEN").current_dir(home).output().unwrap()
}

#[test]
fn a_dataset_is_downloaded_once() {
    let home = tempfile::tempdir().unwrap();
    let (hub, asked) = serve();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let first = data("owner/set[train]", &hub, home.path());
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("2 samples, 5 tokens"), "{}", text(&first.stdout));
    let paths = asked.lock().unwrap().clone();
    assert!(paths.iter().any(|p| p.ends_with("train-00000-of-00001.jsonl")), "{paths:?}");
    assert!(paths.iter().all(|p| !p.contains("test-") && !p.contains("README")), "{paths:?}");
    // It lies where Hugging Face's own tools would look, and the hub is not asked again.
    let kept = home.path().join("hub/datasets--owner--set/snapshots/c0ffee/data/train-00000-of-00001.jsonl");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), FILES[0].1);
    let again = data("owner/set[train:1]", &hub, home.path());
    assert!(text(&again.stdout).contains("1 samples, 3 tokens"), "{}", text(&again.stderr));
    assert_eq!(asked.lock().unwrap().len(), paths.len());
}

#[test]
fn what_cannot_be_had_is_told() {
    let home = tempfile::tempdir().unwrap();
    let (hub, _) = serve();
    let errors = |name: &str, hub: &str| {
        let output = data(name, hub, home.path());
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = errors("owner/other", &hub);
    assert!(text.contains("cannot download owner/other") && text.contains("404") && text.contains("help: "), "{text}");
    let text = errors("owner/set[dev]", &hub);
    assert!(text.contains("no .jsonl, .json or .parquet file of that split"), "{text}");
    // Nothing listens there.
    assert!(errors("owner/set", "http://127.0.0.1:9").contains("cannot download owner/set"));
}
