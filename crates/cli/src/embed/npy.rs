//! numpy's format, version 1.0: magic, length of the header, header padded to 128 bytes in all, values row by row. The names
//! of the images are a text file beside it.

use std::io::{Seek, SeekFrom, Write};

use ndarray::ArrayView2;

use super::{About, Columns, Sink};
use crate::output_file::{OutputFile, commit_all};

/// Bytes before the values: enough for any two numbers.
const HEADER: usize = 128;

/// A matrix in the making.
pub(super) struct Npy {
    matrix: OutputFile,
    names: OutputFile,
    width: usize,
    n_rows: usize,
}

impl Npy {
    pub fn new(mut matrix: OutputFile, names: OutputFile, columns: Columns) -> anyhow::Result<Self> {
        matrix.write_all(&[0; HEADER])?;
        Ok(Self { matrix, names, width: columns.width, n_rows: 0 })
    }
}

impl Sink for Npy {
    fn append(&mut self, rows: ArrayView2<'_, f32>, about: &[About]) -> anyhow::Result<()> {
        for value in rows {
            self.matrix.write_all(&value.to_le_bytes())?;
        }
        for About { name, label, .. } in about {
            let label = label.as_ref().map(|label| format!("\t{label}")).unwrap_or_default();
            writeln!(self.names, "{name}{label}")?;
        }
        self.n_rows += rows.nrows();
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        let shape = format!("({}, {})", self.n_rows, self.width);
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        header.extend((HEADER as u16 - 10).to_le_bytes());
        header.extend(format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}").into_bytes());
        header.resize(HEADER - 1, b' ');
        header.push(b'\n');
        self.matrix.seek(SeekFrom::Start(0))?;
        self.matrix.write_all(&header)?;
        let Self { matrix, names, .. } = *self;
        commit_all([names, matrix])
    }
}
