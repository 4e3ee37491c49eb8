export default function (component) {
  const { data, parentElement } = component;
  const root = parentElement.querySelector(".slider");
  root.made ??= makeSlider(root);
  root.made.set(data.left, data.right);
}
