"""One opener per file format: metadata first, pixels only when asked.

``open_image`` recognises a file by its content, never by its extension. Pillow's plugins are called directly rather
than through ``Image.open``: the format is known, other formats stay out, and Pillow's global pixel limit (179 million)
does not apply; ours is checked as soon as the header is read.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from genres.media import png_chunks, tiff_strips
from genres.media.errors import Refusal
from genres.media.metadata import Metadata, gather, icc_fits, valid_dpi

SUPPORTED = "PNG, JPEG, WebP, TIFF and BMP"
HEAD_BYTES = 4096  # enough to recognise a format
CheckSize = Callable[[int, int], None]

_CONVERT = "convert it to PNG or JPEG"
_SIGNATURES = (
    (png_chunks.SIGNATURE, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_FOREIGN = (
    (b"GIF8", "a GIF", "convert it to PNG, or to a video if it moves"),
    (b"%PDF", "a PDF document", "export the page as PNG or TIFF"),
    (b"%!PS", "an EPS or PostScript document", "export it as PNG or TIFF"),
    (b"\xc5\xd0\xd3\xc6", "an EPS document", "export it as PNG or TIFF"),
    (b"\xff\x0a", "a JPEG XL image", _CONVERT),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image", _CONVERT),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image", _CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image", _CONVERT),
    (b"8BPS", "a Photoshop document", "save it as TIFF or PNG"),
    (b"\0\0\x01\0", "a Windows icon", _CONVERT),
    (b"\x76\x2f\x31\x01", "an OpenEXR image", "convert it to a 32-bit float TIFF"),
)
_ISO_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"), ("a HEIC image", _CONVERT)),
    **dict.fromkeys((b"avif", b"avis"), ("an AVIF image", _CONVERT)),
}


@dataclass
class Opened:
    """A file whose header and metadata have been read.

    Attributes:
        metadata: cleaned metadata.
        orientation: EXIF orientation (1-8) of the stored pixels.
        decode: returns (H, W, C) samples, C = 1, 2, 3 or 4 (an even C has alpha last), uint8, uint16 or float32.
    """

    metadata: Metadata
    orientation: int
    decode: Callable[[], np.ndarray]
    is_upright: bool = False  # ``decode`` already turns the pixels, as both libraries do for TIFF


def open_image(data: bytes, check_size: CheckSize) -> Opened:
    """Opens the bytes of an image file; ``check_size(width, height)`` is called before anything large is touched.

    Raises:
        Refusal: the format or a feature is not supported, or what ``check_size`` raises.
        Exception: of any kind, when the file is damaged; the libraries behind promise nothing.
    """
    return _OPENERS[identify(data)](data, check_size)


def identify(head: bytes) -> str:
    """The format ("PNG", "JPEG", ...) by the first bytes of a file.

    Raises:
        Refusal: another format, known by name or not.
    """
    if len(head) < 12:
        raise Refusal("is empty (0 bytes)" if not head else f"is too short to be an image (bytes: {len(head)})")
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for signature, what, advice in _FOREIGN:
        if head.startswith(signature):
            raise Refusal(f"is {what}, which is not supported: {advice}")
    if head[4:8] == b"ftyp":
        what, advice = _ISO_BRANDS.get(head[8:12], ("a video", "use the video commands for it"))
        raise Refusal(f"is {what}, which is not supported as an image: {advice}")
    if b"<svg" in head[:HEAD_BYTES].lower():
        raise Refusal("is an SVG drawing, which is not supported: export it as PNG at the size you need")
    raise Refusal(f"is not an image of a known format: supported are {SUPPORTED}")


def _open_png(data: bytes, check_size: CheckSize) -> Opened:
    header = png_chunks.read_header(data)
    check_size(header.width, header.height)
    png = png_chunks.scan(data)
    if png.frames > 1:
        raise Refusal(f"is an animated PNG with {png.frames} frames: save the frame you want as its own file")
    texts = {k: v for k, v in png_chunks.read_texts(png).items() if not k.startswith("Raw profile type ")}
    xmp = texts.pop(png_chunks.XMP_KEYWORD, "").encode()
    metadata = Metadata(
        format="PNG",
        mode=png_chunks.PILLOW_MODES.get(png.color_type),
        bit_depth=png.bit_depth,
        icc_profile=png_chunks.read_icc(png),
        dpi=valid_dpi(png_chunks.read_dpi(png)),
        text=texts,
    )
    orientation = gather(metadata, exif=png.first(b"eXIf"), xmp=xmp)
    return Opened(metadata, orientation, partial(_decode_png, png))


def _decode_png(png: png_chunks.PngFile) -> np.ndarray:
    # OpenCV, because Pillow cuts 16-bit colour to 8 bits and takes a file with missing rows for a whole one.
    samples = _decode_with_opencv(png.pixel_stream)
    if png.color_type == png_chunks.GREY_ALPHA:
        return samples[..., [0, -1]]  # OpenCV repeats the grey
    if png.color_type not in (png_chunks.GREY, png_chunks.RGB):
        return samples
    colour = samples[..., : 1 if png.color_type == png_chunks.GREY else 3]
    if png.transparency is None:
        return colour
    key = np.frombuffer(png.transparency, ">u2", colour.shape[2])
    peak = np.iinfo(colour.dtype).max
    if png.bit_depth < 8:
        key = key * (peak // (2**png.bit_depth - 1))
    alpha = np.where((colour == key).all(axis=-1, keepdims=True), 0, peak).astype(colour.dtype)
    return np.concatenate([colour, alpha], axis=-1)


def _open_jpeg(data: bytes, check_size: CheckSize) -> Opened:
    try:
        image = JpegImageFile(io.BytesIO(data))
    except SyntaxError as error:
        if "-bit layers" in str(error):
            raise Refusal("is a JPEG of more than 8 bits, which is not supported: convert it to 16-bit PNG") from error
        raise
    check_size(*image.size)
    comment = image.info.get("comment")
    metadata = _pillow_metadata(image)
    if image.info.get("jfif_unit") not in (1, 2):
        metadata.dpi = None  # Pillow fills in 72 when EXIF has none
    if comment:
        metadata.text["Comment"] = comment.decode("utf-8", errors="replace")
    orientation = gather(metadata, exif=image.info.get("exif"), xmp=image.info.get("xmp"))
    return Opened(metadata, orientation, partial(_decode_with_pillow, image, metadata))


def _open_webp(data: bytes, check_size: CheckSize) -> Opened:
    # Pillow allocates the canvas when it opens a WebP, so the size is read here first.
    check_size(*_webp_size(data))
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise ValueError("it is shorter than its header says")
    image = WebPImageFile(io.BytesIO(data))
    if image.n_frames > 1:
        raise Refusal(f"is an animated WebP with {image.n_frames} frames: save the frame you want as its own file")
    metadata = _pillow_metadata(image)
    orientation = gather(metadata, exif=image.info.get("exif"), xmp=image.info.get("xmp"))
    return Opened(metadata, orientation, partial(_decode_with_pillow, image, metadata))


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise ValueError("its header is cut short")
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _open_bmp(data: bytes, check_size: CheckSize) -> Opened:
    image = BmpImageFile(io.BytesIO(data))
    check_size(*image.size)
    metadata = _pillow_metadata(image)
    return Opened(metadata, 1, partial(_decode_with_pillow, image, metadata))


def _open_tiff(data: bytes, check_size: CheckSize) -> Opened:
    page = tiff_strips.read_page(data)
    if page.is_raw:
        raise Refusal("is a camera raw file, which is not supported: develop it to a 16-bit TIFF or PNG")
    check_size(page.width, page.height)
    if page.has_more_pages:
        raise Refusal("is a TIFF with several pages: save the page you want as its own file")
    if not page.has_plain_channels and page.is_wide:
        raise Refusal(
            f"has {page.samples} channels, which is not supported: save it as grey or RGB, alpha at most beside"
        )
    if page.is_wide:
        metadata = Metadata("TIFF", "L" if page.samples < 3 else "RGB", page.bits, page.icc_profile)
        orientation = gather(metadata, exif=data, xmp=page.xmp)
        is_upright = page.is_for_opencv and page.has_orientation
        return Opened(metadata, orientation, partial(_decode_wide_tiff, data, page), is_upright)
    if not page.is_for_pillow:
        raise Refusal(
            f"stores {page.bits}-bit samples of an unsupported type: save it with 8, 16 or 32-bit float samples"
        )
    image = TiffImageFile(io.BytesIO(data))
    metadata = _pillow_metadata(image)
    metadata.bit_depth = page.bits
    orientation = gather(metadata, exif=data, xmp=page.xmp)
    return Opened(metadata, orientation, partial(_decode_narrow_tiff, image, page, metadata), is_upright=True)


def _decode_narrow_tiff(image: TiffImageFile, page: tiff_strips.TiffPage, metadata: Metadata) -> np.ndarray:
    # With its memory there already, Pillow does not apply its own pixel limit; ours has been checked.
    image.im = Image.new(image.mode, (page.width, page.height)).im
    return _decode_with_pillow(image, metadata)


def _decode_wide_tiff(data: bytes, page: tiff_strips.TiffPage) -> np.ndarray:
    samples = _decode_with_opencv(data) if page.is_for_opencv else tiff_strips.decode_strips(data, page)
    if samples.dtype != np.uint16:
        samples = samples.astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise Refusal("holds values that are not finite (NaN or infinity): replace them and save it again")
    channels = 1 if samples.shape[2] < 3 else 3
    colour, alpha = samples[..., :channels], samples[..., channels : channels + 1]
    if page.photometric == tiff_strips.GREY_WHITE_IS_ZERO and samples.dtype == np.uint16:
        colour = 65535 - colour
    if not page.has_alpha:
        return colour
    if page.extra_samples[:1] == (tiff_strips.ALPHA_ASSOCIATED,):
        colour = _unpremultiply(colour, alpha)
    return np.concatenate([colour, alpha], axis=-1)


def _unpremultiply(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    peak = 65535 if colour.dtype == np.uint16 else 1
    straight = colour * (peak / np.maximum(alpha.astype(np.float64), 1e-6))
    if colour.dtype == np.uint16:
        straight = np.rint(np.minimum(straight, peak))
    return np.where(alpha > 0, straight, 0).astype(colour.dtype)


def _pillow_metadata(image: ImageFile.ImageFile) -> Metadata:
    return Metadata(
        format=image.format,
        mode=image.mode,
        bit_depth=1 if image.mode == "1" else 8,
        icc_profile=image.info.get("icc_profile"),
        dpi=valid_dpi(image.info.get("dpi")),
    )


def _decode_with_pillow(image: ImageFile.ImageFile, metadata: Metadata) -> np.ndarray:
    image.load()
    pixels = np.asarray(_to_plain_mode(image, metadata))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _to_plain_mode(image: Image.Image, metadata: Metadata) -> Image.Image:
    """Converts any 8-bit mode to L, LA, RGB or RGBA; print colours go to sRGB, and their profile with them."""
    mode = image.mode
    if mode in ("CMYK", "LAB"):
        return _print_to_srgb(image, metadata)
    if mode in ("1", "L"):
        return image.convert("LA" if image.has_transparency_data else "L")
    if mode in ("LA", "La"):
        return image.convert("LA")
    if mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    raise Refusal(f"has the colour mode {mode}, which is not supported: convert it to RGB")


def _print_to_srgb(image: Image.Image, metadata: Metadata) -> Image.Image:
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's inverted kind
    profile, metadata.icc_profile = metadata.icc_profile, None
    metadata.notes.append(f"{image.mode} colours were converted to sRGB.")
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        return _through_profile(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), srgb)
    if profile is not None and icc_fits(profile, 4):
        try:
            return _through_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb)
        except ImageCms.PyCMSError:
            metadata.notes.append("The CMYK profile is damaged and was left out.")
    return image.convert("RGB")


def _through_profile(
    image: Image.Image, source: ImageCms.ImageCmsProfile, target: ImageCms.core.CmsProfile
) -> Image.Image:
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    converted = ImageCms.profileToProfile(image, source, target, intent, outputMode="RGB", flags=flags)
    assert converted is not None  # None is for in-place conversion only
    return converted


def _decode_with_opencv(data: bytes) -> np.ndarray:
    """Decodes a PNG, or a 16-bit or float TIFF, to (H, W, C) in the order grey, RGB or RGBA."""
    import cv2  # here, because most formats do not need it

    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)  # its messages about damaged files would come beside ours
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        log.setLogLevel(level)
    if samples is None:
        raise ValueError("its pixels cannot be decoded")
    if samples.ndim == 2:
        return samples[..., None]
    return samples[..., [2, 1, 0, 3][: samples.shape[2]]]


_OPENERS: dict[str, Callable[[bytes, CheckSize], Opened]] = {
    "PNG": _open_png,
    "JPEG": _open_jpeg,
    "WEBP": _open_webp,
    "TIFF": _open_tiff,
    "BMP": _open_bmp,
}
