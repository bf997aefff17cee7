//! Contact sheets: pictures of images side by side, with captions.

use image::{Rgb, RgbImage, imageops};
use swav_augment::{Canvas, CenterCrop, Image, Resizer};
use swav_data::Dataset;

use crate::glyphs::{LINE_HEIGHT, write};

/// Distance between pictures and to the border, in pixels.
const GAP: u32 = 6;
/// How many times the glyphs of captions and of the title are enlarged.
const CAPTION_SCALE: u32 = 2;
const TITLE_SCALE: u32 = 3;
/// Pictures smaller than a tile are enlarged by whole factors up to this.
const MAX_ZOOM: u32 = 8;

/// The colour between pictures.
pub(crate) const BACKGROUND: Rgb<u8> = Rgb([24, 26, 30]);
const MISSING: Rgb<u8> = Rgb([70, 30, 30]);
const TITLE: Rgb<u8> = Rgb([235, 235, 235]);
const CAPTION: Rgb<u8> = Rgb([170, 175, 185]);

/// A picture with what is written below it, a line each.
pub(crate) struct Cell {
    pub picture: Option<RgbImage>,
    pub caption: Vec<String>,
    /// Colour of a frame around it.
    pub frame: Option<Rgb<u8>>,
}

/// How a sheet is laid out.
pub(crate) struct Layout {
    /// Side of a picture.
    pub tile: u32,
    /// Pictures in a row.
    pub n_columns: usize,
}

/// The middle square of an image, at a side of `tile` pixels or, if the image is smaller, at a whole multiple of its
/// own; `None` if it cannot be read.
pub(crate) fn thumbnail(data: &dyn Dataset, index: usize, tile: u32) -> Option<RgbImage> {
    Some(square(data.image(index).ok()?.as_ref(), tile))
}

/// As [`thumbnail`], of an image.
pub(crate) fn square(image: &Image, tile: u32) -> RgbImage {
    let own = image.width().min(image.height()).max(1);
    let (side, zoom) = match own < tile {
        true => (own, (tile / own).clamp(1, MAX_ZOOM)),
        false => (tile, 1),
    };
    let mut canvas = Canvas::default();
    let size = side as usize;
    CenterCrop { resize: size, size }.apply(image.view(), &mut Resizer::default(), &mut canvas);
    let picture = RgbImage::from_raw(side, side, canvas.to_rgb_bytes()).expect("a square of RGB pixels");
    match zoom {
        1 => picture,
        zoom => imageops::resize(&picture, side * zoom, side * zoom, imageops::FilterType::Nearest),
    }
}

/// Draws a title and rows of pictures. Captions are shortened to the width of a picture.
pub(crate) fn draw(title: &str, cells: &[Cell], layout: &Layout) -> RgbImage {
    let n_columns = layout.n_columns.clamp(1, cells.len().max(1)) as u32;
    let n_lines = cells.iter().map(|cell| cell.caption.len()).max().unwrap_or(0) as u32;
    let (width, height) = (layout.tile, layout.tile + n_lines * LINE_HEIGHT * CAPTION_SCALE + GAP / 2);
    let top = if title.is_empty() { GAP } else { 2 * GAP + LINE_HEIGHT * TITLE_SCALE };
    let n_rows = (cells.len() as u32).div_ceil(n_columns);
    let title_width = 4 * TITLE_SCALE * title.chars().count() as u32;
    let mut sheet = RgbImage::from_pixel(
        (GAP + n_columns * (width + GAP)).max(title_width.min(1200) + 2 * GAP),
        top + n_rows * (height + GAP),
        BACKGROUND,
    );
    write(&mut sheet, title, GAP, GAP + 2, TITLE_SCALE, TITLE);
    for (number, cell) in cells.iter().enumerate() {
        let (row, column) = (number as u32 / n_columns, number as u32 % n_columns);
        place(&mut sheet, cell, (GAP + column * (width + GAP), top + row * (height + GAP)), layout.tile);
    }
    sheet
}

fn place(sheet: &mut RgbImage, cell: &Cell, (left, top): (u32, u32), tile: u32) {
    if let Some(frame) = cell.frame {
        fill(sheet, (left.saturating_sub(3), top.saturating_sub(3)), (tile + 6, tile + 6), frame);
    }
    match &cell.picture {
        Some(picture) => {
            fill(sheet, (left, top), (tile, tile), BACKGROUND);
            let margin = |side: u32| tile.saturating_sub(side) / 2;
            let (x, y) = (left + margin(picture.width()), top + margin(picture.height()));
            imageops::replace(sheet, picture, i64::from(x), i64::from(y));
        }
        None => fill(sheet, (left, top), (tile, tile), MISSING),
    }
    let n_letters = (tile / (4 * CAPTION_SCALE)) as usize;
    for (line, text) in cell.caption.iter().enumerate() {
        let y = top + tile + GAP / 2 + line as u32 * LINE_HEIGHT * CAPTION_SCALE;
        write(sheet, &shortened(text, n_letters), left, y, CAPTION_SCALE, CAPTION);
    }
}

fn fill(sheet: &mut RgbImage, (left, top): (u32, u32), (width, height): (u32, u32), colour: Rgb<u8>) {
    for y in top..(top + height).min(sheet.height()) {
        for x in left..(left + width).min(sheet.width()) {
            sheet.put_pixel(x, y, colour);
        }
    }
}

/// A name that is too long without its folders, or with its middle left out: the beginning says what it is, the end tells the files
/// of a folder apart.
fn shortened(text: &str, n_letters: usize) -> String {
    let fits = |text: &str| text.chars().count() <= n_letters;
    let file = text.rsplit('/').next().unwrap_or(text);
    if fits(text) || n_letters < 4 {
        return text.chars().take(n_letters).collect();
    }
    if fits(file) {
        return file.to_owned();
    }
    let (n, tail) = (file.chars().count(), n_letters.div_ceil(2));
    let head = n_letters - 1 - tail;
    file.chars().take(head).chain(['…']).chain(file.chars().skip(n - tail)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_has_room_for_every_picture() {
        let cell = |picture| Cell { picture, caption: vec!["a".to_owned(), "b".to_owned()], frame: None };
        let white = RgbImage::from_pixel(40, 40, Rgb([255; 3]));
        let cells = [cell(Some(white.clone())), cell(None), cell(Some(white))];
        let sheet = draw("title", &cells, &Layout { tile: 40, n_columns: 2 });
        let bright = sheet.pixels().filter(|pixel| **pixel == Rgb([255; 3])).count();
        assert_eq!(bright, 2 * 40 * 40);
        let empty = draw("", &[], &Layout { tile: 40, n_columns: 2 });
        assert!(empty.width() > 0 && empty.height() > 0);
    }

    #[test]
    fn small_images_are_enlarged_and_large_ones_reduced() {
        let grey = |side: usize| {
            Image::new(side as u32, side as u32, swav_augment::Channels::Grey, vec![9; side * side]).unwrap()
        };
        assert_eq!([10, 28, 96, 500].map(|side| square(&grey(side), 96).width()), [80, 84, 96, 96]);
    }

    #[test]
    fn long_names_keep_their_beginning_and_their_end() {
        let short = |text| shortened(text, 8);
        assert_eq!(["a.jpg", "holiday/0123.jpg"].map(short), ["a.jpg", "0123.jpg"]);
        assert_eq!(["holiday/beach01.jpg", "äöüäöüäöü"].map(short), ["bea….jpg", "äöü…üäöü"]);
        assert_eq!(shortened("abcdef", 2), "ab");
    }
}
