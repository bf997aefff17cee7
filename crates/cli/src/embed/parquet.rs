//! Parquet: a row per image, in groups of rows that are written as they fill up.

use std::sync::Arc;

use arrow_array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use ndarray::ArrayView2;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{About, Columns, Sink};
use crate::output_file::OutputFile;

/// Rows of a group: 2048 columns of them take 64 MiB.
const GROUP: usize = 8192;

/// A table in the making.
pub(super) struct Table {
    writer: ArrowWriter<OutputFile>,
    schema: Arc<Schema>,
    columns: Columns,
    item: Arc<Field>,
    n_rows: usize,
}

impl Table {
    pub fn new(file: OutputFile, columns: Columns) -> anyhow::Result<Self> {
        let item = Arc::new(Field::new("item", DataType::Float32, false));
        let list = DataType::FixedSizeList(item.clone(), i32::try_from(columns.width)?);
        let mut fields = vec![Field::new("name", DataType::Utf8, false)];
        if columns.labels {
            fields.push(Field::new("label", DataType::Utf8, true));
        }
        fields.push(Field::new("features", list, false));
        if columns.codes {
            fields.push(Field::new("prototype", DataType::UInt32, false));
            fields.push(Field::new("confidence", DataType::Float32, false));
        }
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        Ok(Self { writer, schema, columns, item, n_rows: 0 })
    }
}

impl Sink for Table {
    fn append(&mut self, rows: ArrayView2<'_, f32>, about: &[About]) -> anyhow::Result<()> {
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(about.iter().map(|about| &about.name)));
        let mut columns = vec![names];
        if self.columns.labels {
            columns.push(Arc::new(StringArray::from_iter(about.iter().map(|about| about.label.as_deref()))));
        }
        let values = Arc::new(Float32Array::from_iter_values(rows.iter().copied()));
        let width = i32::try_from(self.columns.width)?;
        columns.push(Arc::new(FixedSizeListArray::try_new(self.item.clone(), width, values, None)?));
        if self.columns.codes {
            let codes = || about.iter().filter_map(|about| about.code);
            columns.push(Arc::new(UInt32Array::from_iter_values(codes().map(|code| code.0))));
            columns.push(Arc::new(Float32Array::from_iter_values(codes().map(|code| code.1))));
        }
        self.writer.write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        let groups = |n: usize| n / GROUP;
        if groups(self.n_rows + about.len()) > groups(self.n_rows) {
            self.writer.flush()?;
        }
        self.n_rows += about.len();
        Ok(())
    }

    fn finish(self: Box<Self>) -> anyhow::Result<()> {
        self.writer.into_inner()?.commit()
    }
}
