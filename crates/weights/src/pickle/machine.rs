//! The machine: one pass over the operations, a stack, a memory, and a list of objects.

use std::collections::HashMap;

use super::{Global, MAX_OPERATIONS};
use crate::tensors::MAX_RANK;
use crate::{Dtype, WeightsError};

/// A value on the stack. Text and bytes are those of the pickle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 8 bytes, little-endian.
    Long(&'a [u8]),
    Text(&'a str),
    Global(Global),
    /// An object by its number.
    Object(usize),
    /// A float or bytes: something that no tensor needs, but that a dictionary may hold.
    Other,
}

/// Something that holds values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(StorageRef<'a>),
    Tensor(Box<TensorRef>),
}

/// A storage, as a persistent identity names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StorageRef<'a> {
    pub(crate) dtype: Dtype,
    /// What the file calls it.
    pub(crate) key: &'a str,
    /// How many numbers it has.
    pub(crate) len: u64,
}

/// A view of a storage, an object of the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorRef {
    /// The storage's number.
    pub(crate) storage: usize,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

/// What has been read of a pickle.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    bytes: &'a [u8],
    /// Byte of the next operation.
    at: usize,
    n_operations: usize,
    stack: Vec<Value<'a>>,
    /// Lengths of the stack where a mark was set.
    marks: Vec<usize>,
    memory: HashMap<u64, Value<'a>>,
    pub(crate) objects: Vec<Object<'a>>,
}

/// Why a pickle stopped.
pub(crate) enum Stop {
    /// It goes on behind the bytes that there are.
    Cut,
    Wrong(WeightsError),
}

impl From<WeightsError> for Stop {
    fn from(error: WeightsError) -> Self {
        Self::Wrong(error)
    }
}

type Step<T> = Result<T, Stop>;

impl<'a> Machine<'a> {
    /// A machine for pickles in `bytes`, one after the other.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            n_operations: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memory: HashMap::new(),
            objects: Vec::new(),
        }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Runs the next pickle to its end and gives its value. The objects of those before stay.
    pub(crate) fn run(&mut self) -> Step<Value<'a>> {
        self.stack.clear();
        self.marks.clear();
        self.memory.clear();
        loop {
            self.spend(1)?;
            let operation = self.byte()?;
            if operation == b'.' {
                return self.pop();
            }
            self.step(operation)?;
        }
    }

    /// Counts operations. Each value counts as one that is copied out of a sequence, of which a few bytes can ask again and
    /// again.
    fn spend(&mut self, n_operations: usize) -> Step<()> {
        self.n_operations = self.n_operations.saturating_add(n_operations);
        if self.n_operations <= MAX_OPERATIONS {
            return Ok(());
        }
        Err(Stop::Wrong(WeightsError::TooLarge {
            part: "pickle, in operations".to_owned(),
            expected: MAX_OPERATIONS as u64,
            got: self.n_operations as u64,
        }))
    }

    fn step(&mut self, operation: u8) -> Step<()> {
        match operation {
            // What is said of the protocol and of frames is of no use.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.popped_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' | b'r' | 0x94 => {
                let place = match operation {
                    b'q' => self.number(1)?,
                    b'r' => self.number(4)?,
                    _ => self.memory.len() as u64,
                };
                let top = self.top()?;
                self.memory.insert(place, top);
            }
            b'h' | b'j' => {
                let place = self.number(if operation == b'h' { 1 } else { 4 })?;
                let value = self.memory.get(&place).copied();
                let value = value.ok_or_else(|| self.wrong("a value in its memory", "none"))?;
                self.stack.push(value);
            }
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | 0x8b | b'G' => self.scalar(operation)?,
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e => self.text(operation)?,
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'}' | b'd' | 0x8f => self.container(operation)?,
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(operation)?,
            b'c' | 0x93 => {
                let (module, name) = self.name(operation)?;
                let global = Global::find(module, name);
                let global =
                    global.ok_or_else(|| WeightsError::Refused { name: format!("{module}.{name}") })?;
                self.stack.push(Value::Global(global));
            }
            // INST names a class and makes one of it.
            b'i' => {
                let (module, name) = self.name(b'c')?;
                return Err(WeightsError::Refused { name: format!("{module}.{name}") }.into());
            }
            b'R' => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.identity()?,
            other => {
                return Err(self.wrong("an operation of a pickle of tensors", format_args!("{other:#04x}")));
            }
        }
        Ok(())
    }

    fn scalar(&mut self, operation: u8) -> Step<()> {
        let value = match operation {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            b'J' => Value::Int((self.number(4)? as u32 as i32).into()),
            b'G' => {
                self.take(8)?;
                Value::Other
            }
            _ => {
                let n_bytes = self.number(if operation == 0x8a { 1 } else { 4 })?;
                let bytes = self.take(n_bytes)?;
                match bytes.len() {
                    0 => Value::Int(0),
                    1..=8 => {
                        let fill = if bytes[bytes.len() - 1] >= 0x80 { 0xff } else { 0 };
                        let mut whole = [fill; 8];
                        whole[..bytes.len()].copy_from_slice(bytes);
                        Value::Int(i64::from_le_bytes(whole))
                    }
                    _ => Value::Long(bytes),
                }
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, operation: u8) -> Step<()> {
        let n_bytes = self.number(match operation {
            0x8c | b'U' | b'C' => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        })?;
        let bytes = self.take(n_bytes)?;
        let value = match (operation, std::str::from_utf8(bytes)) {
            (b'B' | b'C' | 0x8e, _) => Value::Other,
            (_, Ok(text)) => Value::Text(text),
            // Strings of Python 2 are bytes in any encoding.
            (b'T' | b'U', Err(_)) => Value::Other,
            (_, Err(_)) => return Err(self.wrong("text in UTF-8", "other bytes")),
        };
        self.stack.push(value);
        Ok(())
    }

    /// Makes tuples, lists, dictionaries and sets; the latter as lists.
    fn container(&mut self, operation: u8) -> Step<()> {
        let object = match operation {
            b')' => Object::Tuple(Vec::new()),
            b't' => Object::Tuple(self.popped_to_mark()?),
            0x85..=0x87 => {
                let n_values = usize::from(operation - 0x84);
                let from = self.stack.len().checked_sub(n_values).filter(|&from| from >= self.floor());
                let from = from.ok_or_else(|| self.wrong("values on the stack", "too few"))?;
                Object::Tuple(self.stack.split_off(from))
            }
            b']' | 0x8f => Object::List(Vec::new()),
            b'l' => Object::List(self.popped_to_mark()?),
            b'}' => Object::Dict(Vec::new()),
            _ => {
                let values = self.popped_to_mark()?;
                Object::Dict(self.pairs(values)?)
            }
        };
        self.push_object(object);
        Ok(())
    }

    /// Appends to the list, or enters into the dictionary, that lies below.
    fn fill(&mut self, operation: u8) -> Step<()> {
        let values = match operation {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.popped_to_mark()?,
        };
        let pairs = if matches!(operation, b's' | b'u') { self.pairs(values.clone())? } else { Vec::new() };
        let top = self.top()?;
        let object = if let Value::Object(number) = top { self.objects.get_mut(number) } else { None };
        match (operation, object) {
            (b'a' | b'e' | 0x90, Some(Object::List(list))) => list.extend(values),
            (b's' | b'u', Some(Object::Dict(dict))) => dict.extend(pairs),
            _ => return Err(self.wrong("a list or a dictionary to fill", format_args!("{top:?}"))),
        }
        Ok(())
    }

    /// Module and name of a function or class.
    fn name(&mut self, operation: u8) -> Step<(&'a str, &'a str)> {
        if operation == b'c' {
            return Ok((self.line()?, self.line()?));
        }
        let name = self.pop()?;
        match (self.pop()?, name) {
            (Value::Text(module), Value::Text(name)) => Ok((module, name)),
            _ => Err(self.wrong("the name of a function", "something else")),
        }
    }

    /// Calls a constructor of the allow-list.
    fn call(&mut self) -> Step<()> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let (Value::Global(function), Some(arguments)) = (function, self.sequence(arguments)) else {
            return Err(self.wrong("a constructor with its arguments", format_args!("{function:?}")));
        };
        let arguments = arguments.to_vec();
        self.spend(arguments.len())?;
        let object = match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => Object::Dict(Vec::new()),
            (Global::OrderedDict, [pairs]) => {
                let pair = |&pair: &Value<'a>| match self.sequence(pair) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                let pairs = self.sequence(*pairs);
                let n_pairs = pairs.map_or(0, <[_]>::len);
                let pairs: Option<Vec<_>> = pairs.and_then(|pairs| pairs.iter().map(pair).collect());
                self.spend(n_pairs)?;
                Object::Dict(pairs.ok_or_else(|| self.wrong("pairs for a dictionary", "something else"))?)
            }
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                Object::Tensor(Box::new(self.tensor([*storage, *offset, *shape, *strides])?))
            }
            (Global::RebuildParameter, [tensor @ Value::Object(_), ..]) | (Global::Size, [tensor]) => {
                self.stack.push(*tensor);
                return Ok(());
            }
            _ => {
                let got = format!("{function:?} with {} of them", arguments.len());
                return Err(self.wrong("arguments of a constructor", got));
            }
        };
        self.push_object(object);
        Ok(())
    }

    fn tensor(&self, [storage, offset, shape, strides]: [Value<'a>; 4]) -> Step<TensorRef> {
        let wrong = || self.wrong("storage, offset, shape and strides of a tensor", "something else");
        let Value::Object(storage) = storage else { return Err(wrong()) };
        let Some(Object::Storage(_)) = self.objects.get(storage) else { return Err(wrong()) };
        let number = |value: &Value<'_>| match value {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let numbers = |value| -> Option<Vec<u64>> { self.sequence(value)?.iter().map(number).collect() };
        for extents in [shape, strides] {
            let rank = self.sequence(extents).map_or(0, <[_]>::len);
            if rank > MAX_RANK {
                let part = "pickle, in dimensions of a tensor".to_owned();
                let (expected, got) = (MAX_RANK as u64, rank as u64);
                return Err(WeightsError::TooLarge { part, expected, got }.into());
            }
        }
        let offset = number(&offset);
        match (offset, numbers(shape), numbers(strides)) {
            (Some(offset), Some(shape), Some(strides)) => Ok(TensorRef { storage, offset, shape, strides }),
            _ => Err(wrong()),
        }
    }

    /// What an object remembers of itself beside its contents (PyTorch: versions of modules) is left out.
    fn build(&mut self) -> Step<()> {
        self.pop()?;
        let top = self.top()?;
        let object = if let Value::Object(number) = top { self.objects.get(number) } else { None };
        match object {
            Some(Object::Dict(_) | Object::Tensor(_)) => Ok(()),
            _ => Err(self.wrong("a dictionary or a tensor to set up", format_args!("{top:?}"))),
        }
    }

    /// A storage: ("storage", kind, key, device, length), and in old files what it is a view of.
    fn identity(&mut self) -> Step<()> {
        let identity = self.pop()?;
        let parts = self.sequence(identity).unwrap_or_default();
        let storage = match parts {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                _,
                Value::Int(len),
            ]
            | [
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                _,
                Value::Int(len),
                Value::None,
            ] => u64::try_from(*len).ok().map(|len| StorageRef { dtype: *dtype, key, len }),
            _ => None,
        };
        let storage = storage.ok_or_else(|| self.wrong("the identity of a storage", "something else"))?;
        self.push_object(Object::Storage(storage));
        Ok(())
    }

    /// The contents of a tuple or list.
    pub(crate) fn sequence(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Object(number) => match self.objects.get(number)? {
                Object::Tuple(values) | Object::List(values) => Some(values),
                _ => None,
            },
            _ => None,
        }
    }

    fn pairs(&self, values: Vec<Value<'a>>) -> Step<Vec<(Value<'a>, Value<'a>)>> {
        let (pairs, rest) = values.as_chunks::<2>();
        if rest.is_empty() {
            return Ok(pairs.iter().map(|&[key, value]| (key, value)).collect());
        }
        Err(self.wrong("a value for each key", "a key without one"))
    }

    fn push_object(&mut self, object: Object<'a>) {
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
    }

    /// Below this the stack belongs to what comes after the mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Step<Value<'a>> {
        let own = self.stack.get(self.floor()..).unwrap_or_default();
        own.last().copied().ok_or_else(|| self.wrong("a value on the stack", "none"))
    }

    fn popped_to_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        let mark = mark.ok_or_else(|| self.wrong("a mark on the stack", "none"))?;
        Ok(self.stack.split_off(mark))
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self, n_bytes: u64) -> Step<u64> {
        let bytes = self.take(n_bytes)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn take(&mut self, n_bytes: u64) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let n_bytes = usize::try_from(n_bytes).map_err(|_| Stop::Cut)?;
        let taken = rest.get(..n_bytes).ok_or(Stop::Cut)?;
        self.at += n_bytes;
        Ok(taken)
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or(Stop::Cut)?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.wrong("a name in UTF-8", "other bytes"))
    }

    fn wrong(&self, expected: impl ToString, got: impl ToString) -> Stop {
        Stop::Wrong(WeightsError::malformed(format!("pickle, up to byte {}", self.at), expected, got))
    }
}
