//! The nouns: bitfields, how a torrent is cut, info-hashes.

use seedring::units::{BLOCK_LEN, Bitfield, Block, Geometry, InfoHash, PieceIndex};

use super::{Input, Script};

/// A bitfield from the wire, blocks judged by a geometry, and a text as info-hash.
pub(super) fn units(data: &[u8]) {
    let mut input = Input(data);
    geometry(&mut input);
    let len = u32::from(input.u16()) % 2048;
    bitfield(&mut input, len);
    if let Ok(text) = std::str::from_utf8(input.0)
        && let Ok(hash) = text.parse::<InfoHash>()
    {
        assert_eq!(hash.to_string(), text.to_ascii_lowercase());
    }
}

fn geometry(input: &mut Input<'_>) {
    let (total_len, piece_len) = (input.u64(), input.u32());
    let block = Block { piece: PieceIndex(input.u32()), begin: input.u32(), len: input.u32() };
    let Some(geometry) = Geometry::new(total_len, piece_len) else { return };
    let count = geometry.piece_count();
    let sum = match count.checked_sub(1).map(PieceIndex) {
        Some(last) => geometry.piece_start(last) + u64::from(geometry.piece_len(last)),
        None => 0,
    };
    assert_eq!(sum, total_len);
    assert_eq!(geometry.piece_len(PieceIndex(count)), 0);
    for piece in [PieceIndex(0), PieceIndex(count.saturating_sub(1)), block.piece] {
        let blocks = geometry.block_count(piece);
        assert_eq!(geometry.block(piece, blocks), None);
        if let Some(last) = blocks.checked_sub(1).and_then(|last| geometry.block(piece, last)) {
            assert!(geometry.contains(last) && geometry.is_aligned(last));
            assert_eq!(last.begin + last.len, geometry.piece_len(piece));
        }
    }
    if geometry.is_aligned(block) {
        assert!(geometry.contains(block) && block.len <= BLOCK_LEN);
    }
    if geometry.contains(block) {
        assert!(block.piece.0 < count && block.len > 0);
        let end = u64::from(block.begin) + u64::from(block.len);
        assert!(geometry.piece_start(block.piece) + end <= total_len);
    }
}

fn bitfield(input: &mut Input<'_>, len: u32) {
    let bytes = input.take(len.div_ceil(8) as usize);
    let Some(mut field) = Bitfield::from_wire(bytes, len) else { return };
    assert_eq!(field.to_wire(), bytes);
    let ones: Vec<PieceIndex> = field.iter().collect();
    assert_eq!(ones.len(), field.count() as usize);
    assert!(ones.is_sorted() && ones.iter().all(|&piece| piece.0 < len && field.has(piece)));
    assert_eq!(field.is_complete(), field.count() == len);
    assert!(!Bitfield::all(len).lacks_any_of(&field));
    assert_eq!(Bitfield::none(len).lacks_any_of(&field), field.count() > 0);
    for &piece in &ones {
        assert!(field.clear(piece) && !field.clear(piece));
    }
    assert_eq!(field, Bitfield::none(len));
    for &piece in &ones {
        assert!(field.set(piece) && !field.set(piece));
    }
    assert_eq!(field.to_wire(), bytes);
    assert!(!field.set(PieceIndex(len)) && !field.has(PieceIndex(len)));
}

pub(super) fn units_seeds() -> Vec<Vec<u8>> {
    let seed = |total: u64, piece: u32, block: [u32; 3], bits: u16, field: &[u8], text: &str| {
        let head = Script::default().bytes(&total.to_be_bytes()).bytes(&piece.to_be_bytes());
        let block: Vec<u8> = block.into_iter().flat_map(u32::to_be_bytes).collect();
        head.bytes(&block).bytes(&bits.to_be_bytes()).bytes(field).bytes(text.as_bytes()).0
    };
    vec![
        seed(100_000, 32_768, [3, 0, 1696], 9, &[0x80, 0x80], &"0f".repeat(20)),
        seed(0, 16_384, [0, 0, 1], 0, &[], &"AB".repeat(20)),
        seed(1, 1, [0, 0, 1], 64, &[0xff; 8], "x"),
        seed(u64::MAX, u32::MAX, [u32::MAX, u32::MAX, u32::MAX], 13, &[1, 2], ""),
        seed(40_000, 16_384, [0, 16_384, 16_384], 130, &[0x55; 17], &"zz".repeat(20)),
    ]
}
