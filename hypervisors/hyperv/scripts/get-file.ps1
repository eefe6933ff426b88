# What a file is to its file system, and what room the volume has. { path }
# Hyper-V opens no disk whose file is sparse, compressed or encrypted.
# free, total: null where the path is not on a volume of the host.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    $result = @{
        exists = $false
        size = 0
        sparse = $false
        compressed = $false
        encrypted = $false
        read_only = $false
        free = $null
        total = $null
    }
    try { $volume = Get-Volume -FilePath (Split-Path -Path $argument.path -Parent) }
    catch { $volume = $null }
    if ($null -ne $volume) {
        $result.free = $volume.SizeRemaining
        $result.total = $volume.Size
    }
    if (Test-Path -LiteralPath $argument.path -PathType Leaf) {
        $item = Get-Item -LiteralPath $argument.path -Force
        $result.exists = $true
        $result.size = $item.Length
        $result.read_only = $item.IsReadOnly
        $result.sparse = [bool]($item.Attributes -band [System.IO.FileAttributes]::SparseFile)
        $result.compressed = [bool]($item.Attributes -band [System.IO.FileAttributes]::Compressed)
        $result.encrypted = [bool]($item.Attributes -band [System.IO.FileAttributes]::Encrypted)
    }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
