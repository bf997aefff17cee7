//! safetensors: length of the header, header of JSON, the tensors' bytes. The header is written last, into room that is
//! kept for it, as the number of rows is not known before.

use std::io::{Seek, SeekFrom, Write};

use ndarray::ArrayView2;
use serde_json::{Map, Value, json};

use super::{About, Columns, Sink};
use crate::output_file::OutputFile;

/// Bytes of the header, a multiple of 8: enough for five tensors; what is left is spaces.
const HEADER: usize = 1024;

/// A file in the making. What is not features is kept in memory: some bytes per image.
pub(super) struct Tensors {
    file: OutputFile,
    columns: Columns,
    n_rows: usize,
    names: Vec<String>,
    labels: Vec<String>,
    prototypes: Vec<u8>,
    confidence: Vec<u8>,
}

impl Tensors {
    pub fn new(mut file: OutputFile, columns: Columns) -> anyhow::Result<Self> {
        file.write_all(&[b' '; 8 + HEADER])?;
        let (names, labels, prototypes, confidence) = Default::default();
        Ok(Self { file, columns, n_rows: 0, names, labels, prototypes, confidence })
    }
}

impl Sink for Tensors {
    fn append(&mut self, rows: ArrayView2<'_, f32>, about: &[About]) -> anyhow::Result<()> {
        for value in rows {
            self.file.write_all(&value.to_le_bytes())?;
        }
        self.n_rows += rows.nrows();
        for About { name, label, code } in about {
            self.names.push(name.clone());
            self.labels.push(label.clone().unwrap_or_default());
            if let Some((prototype, confidence)) = code {
                self.prototypes.extend(i32::try_from(*prototype)?.to_le_bytes());
                self.confidence.extend(confidence.to_le_bytes());
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        let (names, labels) = (self.names.join("\n"), self.labels.join("\n"));
        let (n, width) = (self.n_rows, self.columns.width);
        // Numbers of four bytes come before text, so that all of them are aligned.
        let mut tensors: Vec<(&str, &str, Value, &[u8])> = Vec::new();
        if self.columns.codes {
            tensors.push(("prototype", "I32", json!([n]), &self.prototypes));
            tensors.push(("confidence", "F32", json!([n]), &self.confidence));
        }
        tensors.push(("names", "U8", json!([names.len()]), names.as_bytes()));
        if self.columns.labels {
            tensors.push(("labels", "U8", json!([labels.len()]), labels.as_bytes()));
        }
        let mut at = n * width * 4;
        let mut header = Map::new();
        let text = "names and labels are text, a line for each row";
        header.insert("__metadata__".to_owned(), json!({ "format": "pt", "about": text }));
        let entry = |dtype: &str, shape: Value, from: usize, to: usize| json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
        header.insert("features".to_owned(), entry("F32", json!([n, width]), 0, at));
        for (name, dtype, shape, bytes) in tensors {
            self.file.write_all(bytes)?;
            header.insert(name.to_owned(), entry(dtype, shape, at, at + bytes.len()));
            at += bytes.len();
        }
        let header = serde_json::to_vec(&header)?;
        anyhow::ensure!(header.len() <= HEADER, "the header has {} bytes, room for {HEADER}", header.len());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&(HEADER as u64).to_le_bytes())?;
        self.file.write_all(&header)?;
        self.file.commit()
    }
}
