from pathlib import Path

import pytest

from hellm_pyg.llm.image_folder import checked_folder, find_images, image_paths


def test_files_named_by_ids(tmp_path, caplog):
    for name in ('SKU-1.JPG', '7.png', '7.webp', 'SKU-2.txt', '.SKU-3.jpg', 'x.y.jpeg'):
        (tmp_path / name).touch()
    found = find_images(tmp_path, ['SKU-1', 7, 'SKU-2', 'SKU-3', 'x.y', 'SKU'])
    assert found == ['SKU-1.JPG', '7.png', '', '', 'x.y.jpeg', '']
    assert '1 images are passed over' in caplog.text


def test_names_that_a_file_system_has_taken_apart(tmp_path):
    (tmp_path / 'e\u0301.jpg').touch()
    assert find_images(tmp_path, ['é', 'e']) == ['e\u0301.jpg', '']


def test_a_folder_without_files_of_the_items(tmp_path):
    with pytest.raises(ValueError, match=r"'a\.jpg' \(got .* with no image\)"):
        find_images(tmp_path, ['a'])
    (tmp_path / 'IMG_1.jpg').touch()
    with pytest.raises(ValueError, match=r"'a\.jpg' \(got .* with 'IMG_1\.jpg'\)"):
        find_images(tmp_path, ['a'])
    with pytest.raises(ValueError, match="'images' is not a folder"):
        find_images(tmp_path / 'IMG_1.jpg', ['a'])
    with pytest.raises(ValueError, match="'images' is not a folder"):
        checked_folder(tmp_path / 'nowhere')


def test_paths_within_the_folder():
    folder = Path('photos')
    names = ['a.jpg', '', None, ' b.jpg ', float('nan'), 'in/../c.jpg', './d/e.jpg']
    assert image_paths(names, folder) == [
        folder / 'a.jpg',
        None,
        None,
        folder / 'b.jpg',
        None,
        folder / 'c.jpg',
        folder / 'd' / 'e.jpg',
    ]


@pytest.mark.parametrize('name', ['../a.jpg', '/etc/passwd', 'a/../../b.jpg', '..'])
def test_names_that_lead_out_of_the_folder(name):
    with pytest.raises(ValueError, match=r"within 'photos' \(got .* in row 2\)"):
        image_paths(['a.jpg', name], Path('photos'))
