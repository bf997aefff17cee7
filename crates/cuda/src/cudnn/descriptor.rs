//! cuDNN's descriptors: objects with attributes, that are fixed once they are whole.

use std::ffi::{c_uint, c_void};

use super::Api;
use super::names::value;
use crate::{Error, Result};

/// `cudnnBackendDescriptor_t`.
pub(super) type Raw = *mut c_void;

/// A value that an attribute may hold.
///
/// # Safety
/// The size of the type must be that of cuDNN's type `KIND`.
pub(super) unsafe trait Value: Copy + Default {
    /// The type's number, `CUDNN_TYPE_*`.
    const KIND: c_uint;
}

// SAFETY: 64 bits.
unsafe impl Value for i64 {
    const KIND: c_uint = value::INT64;
}

// SAFETY: 32 bits.
unsafe impl Value for f32 {
    const KIND: c_uint = value::FLOAT;
}

// SAFETY: one byte.
unsafe impl Value for u8 {
    const KIND: c_uint = value::CHAR;
}

/// An enumeration's value; `KIND` says of which.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Number<const KIND: c_uint>(pub(super) c_uint);

// SAFETY: C's enumerations have 32 bits in cuDNN.
unsafe impl<const KIND: c_uint> Value for Number<KIND> {
    const KIND: c_uint = KIND;
}

/// An address on the card.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Address(#[allow(dead_code, reason = "only cuDNN reads it")] pub(super) u64);

// SAFETY: as wide as a pointer on every platform that CUDA 12 and later support.
unsafe impl Value for Address {
    const KIND: c_uint = value::VOID_PTR;
}

const _: () = assert!(size_of::<u64>() == size_of::<*const c_void>());

/// A descriptor.
#[derive(Debug)]
pub(super) struct Descriptor {
    api: &'static Api,
    raw: Raw,
    /// What it refers to; cuDNN keeps addresses of some of them.
    _parts: Vec<Descriptor>,
}

// SAFETY: cuDNN binds descriptors to no thread.
unsafe impl Send for Descriptor {}
// SAFETY: whole descriptors are only read.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// A new descriptor without attributes.
    pub(super) fn new(api: &'static Api, kind: c_uint) -> Result<Descriptor> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle, destroyed on drop.
        let status = unsafe { (api.cudnnBackendCreateDescriptor)(kind, &mut raw) };
        api.check("cudnnBackendCreateDescriptor", status)?;
        Ok(Descriptor { api, raw, _parts: Vec::new() })
    }

    /// Sets an attribute.
    pub(super) fn set<V: Value>(&mut self, attribute: c_uint, values: &[V]) -> Result<()> {
        self.set_raw(attribute, V::KIND, values)
    }

    /// Sets an attribute to another descriptor.
    pub(super) fn set_part(&mut self, attribute: c_uint, part: &Descriptor) -> Result<()> {
        self.set_raw(attribute, value::BACKEND_DESCRIPTOR, &[part.raw])
    }

    /// Sets an attribute to other descriptors.
    pub(super) fn set_parts(&mut self, attribute: c_uint, parts: &[Descriptor]) -> Result<()> {
        let raw: Vec<Raw> = parts.iter().map(|part| part.raw).collect();
        self.set_raw(attribute, value::BACKEND_DESCRIPTOR, &raw)
    }

    /// Sets an attribute to the library's handle.
    pub(super) fn set_handle(&mut self, attribute: c_uint, handle: *mut c_void) -> Result<()> {
        self.set_raw(attribute, value::HANDLE, &[handle])
    }

    fn set_raw<V: Copy>(&mut self, attribute: c_uint, kind: c_uint, values: &[V]) -> Result<()> {
        let (count, address) = (values.len() as i64, values.as_ptr().cast());
        // SAFETY: reads `count` values of the type `kind`, whose size `V` has.
        let status =
            unsafe { (self.api.cudnnBackendSetAttribute)(self.raw, attribute, kind, count, address) };
        self.api.check("cudnnBackendSetAttribute", status)
    }

    /// Makes the descriptor whole. It keeps `parts`, all that it refers to, alive.
    pub(super) fn finish(mut self, parts: Vec<Descriptor>) -> Result<Descriptor> {
        // SAFETY: the descriptor is alive.
        let status = unsafe { (self.api.cudnnBackendFinalize)(self.raw) };
        self.api.check("cudnnBackendFinalize", status)?;
        self._parts = parts;
        Ok(self)
    }

    /// The values of an attribute, at most `most`.
    pub(super) fn get<V: Value>(&self, attribute: c_uint, most: usize) -> Result<Vec<V>> {
        let mut values = vec![V::default(); most];
        let count = self.get_raw(attribute, V::KIND, &mut values)?;
        values.truncate(count);
        Ok(values)
    }

    /// The first value of an attribute.
    pub(super) fn get_one<V: Value>(&self, attribute: c_uint) -> Result<V> {
        let none = || Error::Cudnn { call: "cudnnBackendGetAttribute", status: 0, text: "no value".into() };
        self.get(attribute, 1)?.first().copied().ok_or_else(none)
    }

    /// The descriptors in an attribute, of the kind `kind`, at most `most`.
    pub(super) fn get_parts(&self, attribute: c_uint, kind: c_uint, most: usize) -> Result<Vec<Descriptor>> {
        let mut parts = (0..most).map(|_| Descriptor::new(self.api, kind)).collect::<Result<Vec<_>>>()?;
        let mut raw: Vec<Raw> = parts.iter().map(|part| part.raw).collect();
        let count = self.get_raw(attribute, value::BACKEND_DESCRIPTOR, &mut raw)?;
        parts.truncate(count);
        Ok(parts)
    }

    fn get_raw<V: Copy>(&self, attribute: c_uint, kind: c_uint, values: &mut [V]) -> Result<usize> {
        let (most, mut count) = (values.len() as i64, 0_i64);
        let address = values.as_mut_ptr().cast();
        // SAFETY: writes at most `most` values of the type `kind`, whose size `V` has; for descriptors, it fills those
        // whose handles it finds there.
        let status = unsafe {
            (self.api.cudnnBackendGetAttribute)(self.raw, attribute, kind, most, &mut count, address)
        };
        self.api.check("cudnnBackendGetAttribute", status)?;
        Ok((count.max(0) as usize).min(values.len()))
    }

    pub(super) fn raw(&self) -> Raw {
        self.raw
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created in `new`, dropped once, and before its parts.
        unsafe { (self.api.cudnnBackendDestroyDescriptor)(self.raw) };
    }
}
