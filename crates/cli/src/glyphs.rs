//! Labels on pictures: capital letters and digits of 3x5 pixels, enlarged.

use image::{Rgb, RgbImage};

/// Each glyph's five rows, from the top; the leftmost pixel of a row is its highest bit.
const GLYPHS: [(char, [u8; 5]); 54] = [
    ('A', [0b010, 0b101, 0b111, 0b101, 0b101]),
    ('B', [0b110, 0b101, 0b110, 0b101, 0b110]),
    ('C', [0b011, 0b100, 0b100, 0b100, 0b011]),
    ('D', [0b110, 0b101, 0b101, 0b101, 0b110]),
    ('E', [0b111, 0b100, 0b110, 0b100, 0b111]),
    ('F', [0b111, 0b100, 0b110, 0b100, 0b100]),
    ('G', [0b011, 0b100, 0b101, 0b101, 0b011]),
    ('H', [0b101, 0b101, 0b111, 0b101, 0b101]),
    ('I', [0b111, 0b010, 0b010, 0b010, 0b111]),
    ('J', [0b001, 0b001, 0b001, 0b101, 0b010]),
    ('K', [0b101, 0b101, 0b110, 0b101, 0b101]),
    ('L', [0b100, 0b100, 0b100, 0b100, 0b111]),
    ('M', [0b101, 0b111, 0b111, 0b101, 0b101]),
    ('N', [0b110, 0b101, 0b101, 0b101, 0b101]),
    ('O', [0b010, 0b101, 0b101, 0b101, 0b010]),
    ('P', [0b110, 0b101, 0b110, 0b100, 0b100]),
    ('Q', [0b010, 0b101, 0b101, 0b110, 0b011]),
    ('R', [0b110, 0b101, 0b110, 0b101, 0b101]),
    ('S', [0b011, 0b100, 0b010, 0b001, 0b110]),
    ('T', [0b111, 0b010, 0b010, 0b010, 0b010]),
    ('U', [0b101, 0b101, 0b101, 0b101, 0b111]),
    ('V', [0b101, 0b101, 0b101, 0b101, 0b010]),
    ('W', [0b101, 0b101, 0b111, 0b111, 0b101]),
    ('X', [0b101, 0b101, 0b010, 0b101, 0b101]),
    ('Y', [0b101, 0b101, 0b010, 0b010, 0b010]),
    ('Z', [0b111, 0b001, 0b010, 0b100, 0b111]),
    ('0', [0b111, 0b101, 0b101, 0b101, 0b111]),
    ('1', [0b010, 0b110, 0b010, 0b010, 0b111]),
    ('2', [0b110, 0b001, 0b010, 0b100, 0b111]),
    ('3', [0b110, 0b001, 0b010, 0b001, 0b110]),
    ('4', [0b101, 0b101, 0b111, 0b001, 0b001]),
    ('5', [0b111, 0b100, 0b110, 0b001, 0b110]),
    ('6', [0b011, 0b100, 0b111, 0b101, 0b111]),
    ('7', [0b111, 0b001, 0b010, 0b010, 0b010]),
    ('8', [0b111, 0b101, 0b111, 0b101, 0b111]),
    ('9', [0b111, 0b101, 0b111, 0b001, 0b110]),
    ('.', [0b000, 0b000, 0b000, 0b000, 0b010]),
    (',', [0b000, 0b000, 0b000, 0b010, 0b100]),
    (':', [0b000, 0b010, 0b000, 0b010, 0b000]),
    ('-', [0b000, 0b000, 0b111, 0b000, 0b000]),
    ('/', [0b001, 0b001, 0b010, 0b100, 0b100]),
    ('%', [0b101, 0b001, 0b010, 0b100, 0b101]),
    ('_', [0b000, 0b000, 0b000, 0b000, 0b111]),
    ('…', [0b000, 0b000, 0b000, 0b000, 0b101]),
    ('(', [0b001, 0b010, 0b010, 0b010, 0b001]),
    (')', [0b100, 0b010, 0b010, 0b010, 0b100]),
    ('#', [0b101, 0b111, 0b101, 0b111, 0b101]),
    ('+', [0b000, 0b010, 0b111, 0b010, 0b000]),
    ('=', [0b000, 0b111, 0b000, 0b111, 0b000]),
    ('!', [0b010, 0b010, 0b010, 0b000, 0b010]),
    ('?', [0b110, 0b001, 0b010, 0b000, 0b010]),
    ('&', [0b010, 0b101, 0b010, 0b101, 0b011]),
    ('\'', [0b010, 0b010, 0b000, 0b000, 0b000]),
    (' ', [0; 5]),
];

/// Height of a line of text in pixels of the glyphs, its gap included.
pub(crate) const LINE_HEIGHT: u32 = 7;

/// Writes text with its top left corner at (`left`, `top`), each pixel of the glyphs `scale` wide. Letters become
/// capitals, unknown characters empty; what is outside the picture is cut off. A newline begins a new line.
pub(crate) fn write(picture: &mut RgbImage, text: &str, left: u32, top: u32, scale: u32, color: Rgb<u8>) {
    for (line, text) in text.lines().enumerate() {
        for (column, letter) in text.chars().enumerate() {
            let letter = letter.to_ascii_uppercase();
            let rows = GLYPHS.iter().find(|(known, _)| *known == letter).map_or([0; 5], |(_, rows)| *rows);
            for y in 0..5 * scale {
                for x in 0..3 * scale {
                    if (rows[(y / scale) as usize] >> (2 - x / scale)) & 1 == 1 {
                        let x = left + 4 * scale * column as u32 + x;
                        let y = top + LINE_HEIGHT * scale * line as u32 + y;
                        if x < picture.width() && y < picture.height() {
                            picture.put_pixel(x, y, color);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_looks_like_itself_and_stays_inside() {
        let mut picture = RgbImage::new(5, 5);
        write(&mut picture, "tt", 0, 0, 1, Rgb([255; 3]));
        let row = |y: u32| (0..5).map(|x| u8::from(picture.get_pixel(x, y)[0] > 0)).collect::<Vec<_>>();
        assert_eq!(row(0), [1, 1, 1, 0, 1]);
        assert_eq!(row(4), [0, 1, 0, 0, 0]);
    }
}
