"""Writes the line below a picture that says what is seen."""

from PIL import Image, ImageDraw, ImageFont


def write_line(picture: Image.Image, left: str, right: str) -> None:
    """Writes two texts on a strip along the lower edge, in letters that suit the picture's height;
    smaller ones where both would not fit beside each other."""
    draw, letters = ImageDraw.Draw(picture, "RGBA"), max(picture.height // 36, 8)
    pad, font = round(0.6 * letters), ImageFont.load_default(letters)
    top = picture.height - letters - 2 * pad
    room, needed = picture.width - 5 * pad, draw.textlength(left + right, font=font)
    if needed > room:
        font = ImageFont.load_default(max(letters * room / needed, 6))
    draw.rectangle((0, top, picture.width, picture.height), fill=(20, 24, 28, 150))
    middle = (top + picture.height) / 2
    place = picture.width - 1.5 * pad
    draw.text((1.5 * pad, middle), left, fill=(255, 255, 255), font=font, anchor="lm")
    draw.text((place, middle), right, fill=(255, 255, 255), font=font, anchor="rm")
