//! Writes small Parquet files: plain pages, uncompressed, as simple as the format allows.

use std::{fs, path::Path};

/// A column of values, some of which may be missing.
pub enum Values {
    Bytes(Vec<Option<Vec<u8>>>),
    Texts(Vec<Option<String>>),
    Ints(Vec<Option<i64>>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Ints(values) => values.len(),
        }
    }

    /// A data page of some rows: levels of one byte each, then the values. `definition` is that of a value.
    fn page(&self, rows: std::ops::Range<usize>, definition: u8) -> Vec<u8> {
        let values: Vec<Option<Vec<u8>>> = rows
            .map(|row| {
                let string = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
                match self {
                    Self::Bytes(values) => values[row].as_deref().map(string),
                    Self::Texts(values) => values[row].as_deref().map(|text| string(text.as_bytes())),
                    Self::Ints(values) => values[row].map(|number| number.to_le_bytes().to_vec()),
                }
            })
            .collect();
        let levels: Vec<u8> = values
            .iter()
            .flat_map(|value| [2, if value.is_some() { definition } else { definition - 1 }])
            .collect();
        let mut page = (levels.len() as u32).to_le_bytes().to_vec();
        page.extend(levels);
        values.into_iter().flatten().for_each(|value| page.extend(value));
        page
    }
}

/// The file's bytes. A column is at the top, or in an optional struct; `notes` are the metadata under `huggingface`.
pub fn table(columns: &[(&[&str], Values)], rows_per_group: usize, notes: Option<&str>) -> Vec<u8> {
    let mut file = b"PAR1".to_vec();
    let n_rows = columns[0].1.len();
    let starts: Vec<usize> = (0..n_rows).step_by(rows_per_group).collect();
    let mut groups = Vec::new();
    for &from in &starts {
        let rows = from..n_rows.min(from + rows_per_group);
        let mut chunks = Vec::new();
        for (path, values) in columns {
            let page = values.page(rows.clone(), path.len() as u8);
            let header = thrift(&[
                (1, Int(0)),
                (2, Int(page.len() as i64)),
                (3, Int(page.len() as i64)),
                (5, Struct(thrift(&[(1, Int(rows.len() as i64)), (2, Int(0)), (3, Int(3)), (4, Int(3))]))),
            ]);
            let (at, bytes) = (file.len() as i64, (header.len() + page.len()) as i64);
            file.extend(header);
            file.extend(page);
            let kind = if matches!(values, Values::Ints(_)) { 2 } else { 6 };
            let names = path.iter().map(|name| string(name.as_bytes())).collect();
            let about = thrift(&[
                (1, Int(kind)),
                (2, List(5, vec![varint(0)])),
                (3, List(8, names)),
                (4, Int(0)),
                (5, Int(rows.len() as i64)),
                (6, Int(bytes)),
                (7, Int(bytes)),
                (9, Int(at)),
            ]);
            chunks.push(thrift(&[(2, Int(at)), (3, Struct(about))]));
        }
        groups.push(thrift(&[(1, List(12, chunks)), (2, Int(1)), (3, Int(rows.len() as i64))]));
    }
    let footer = thrift(&[
        (1, Int(1)),
        (2, List(12, schema(columns))),
        (3, Int(n_rows as i64)),
        (4, List(12, groups)),
        (
            5,
            List(12, notes.iter().map(|text| thrift(&[(1, Text("huggingface")), (2, Text(text))])).collect()),
        ),
    ]);
    file.extend(&footer);
    file.extend((footer.len() as u32).to_le_bytes());
    file.extend(b"PAR1");
    file
}

fn schema(columns: &[(&[&str], Values)]) -> Vec<Vec<u8>> {
    let tops = columns.iter().map(|(path, _)| path[0]);
    let mut names: Vec<&str> = tops.collect();
    names.dedup();
    let mut schema = vec![thrift(&[(4, Text("schema")), (5, Int(names.len() as i64))])];
    for name in names {
        let inside = columns.iter().filter(|(path, _)| path[0] == name);
        if columns.iter().any(|(path, _)| path[0] == name && path.len() > 1) {
            schema.push(thrift(&[(3, Int(1)), (4, Text(name)), (5, Int(inside.clone().count() as i64))]));
        }
        for (path, values) in inside {
            let kind = if matches!(values, Values::Ints(_)) { 2 } else { 6 };
            let mut leaf = vec![(1, Int(kind)), (3, Int(1)), (4, Text(path[path.len() - 1]))];
            if matches!(values, Values::Texts(_)) {
                leaf.push((6, Int(0)));
            }
            schema.push(thrift(&leaf));
        }
    }
    schema
}

/// Writes such a file.
pub fn put_table(path: &Path, columns: &[(&[&str], Values)], rows_per_group: usize, notes: Option<&str>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, table(columns, rows_per_group, notes)).unwrap();
}

/// A field's value in Thrift's compact protocol.
pub enum Field<'a> {
    Int(i64),
    Text(&'a str),
    Struct(Vec<u8>),
    /// The elements' type, and the elements as they are written.
    List(u8, Vec<Vec<u8>>),
}

pub use Field::{Int, List, Struct, Text};

/// A structure of these fields, in ascending order.
pub fn thrift(fields: &[(u8, Field<'_>)]) -> Vec<u8> {
    let (mut bytes, mut last) = (Vec::new(), 0);
    for (number, field) in fields {
        let kind = match field {
            Int(_) => 6,
            Text(_) => 8,
            Struct(_) => 12,
            List(..) => 9,
        };
        bytes.push((number - last) << 4 | kind);
        last = *number;
        match field {
            Int(number) => bytes.extend(varint(((number << 1) ^ (number >> 63)).cast_unsigned())),
            Text(text) => bytes.extend(string(text.as_bytes())),
            Struct(content) => bytes.extend(content),
            List(kind, elements) => {
                bytes.push(0xf0 | kind);
                bytes.extend(varint(elements.len() as u64));
                elements.iter().for_each(|element| bytes.extend(element));
            }
        }
    }
    bytes.push(0);
    bytes
}

fn string(text: &[u8]) -> Vec<u8> {
    [varint(text.len() as u64), text.to_vec()].concat()
}

/// A number, seven bits a byte.
pub fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
