//! Writes seeds for the fuzz targets into a folder, from the test vectors. Needs no crate: `rustc seeds.rs`.

use std::fs;
use std::path::Path;

#[path = "../vectors/http/reader.rs"]
mod reader;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(vectors), Some(corpus)) = (arguments.next(), arguments.next()) else {
        panic!("usage: seeds VECTORS CORPUS");
    };
    let corpus = Path::new(&corpus);
    for (number, vector) in reader::read(&Path::new(&vectors).join("http")).iter().enumerate() {
        let bytes = &vector.bytes;
        save(corpus, "head", number, bytes);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            save(corpus, "body", number, &bytes[end + 4..]);
        }
        let caller = match vector.caller.as_str() {
            "refuses" => 2,
            "upgrades" => 3,
            _ => number as u8 % 2,
        };
        save(corpus, "conn", number, &[&[caller, number as u8], bytes.as_slice()].concat());
    }
}

fn save(corpus: &Path, target: &str, number: usize, bytes: &[u8]) {
    let folder = corpus.join(target);
    fs::create_dir_all(&folder).expect("the folder of the seeds");
    fs::write(folder.join(format!("vector-{number}")), bytes).expect("a seed");
}
